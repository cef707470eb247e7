"""What `qwen3q` is held to beside its peers, and whether the rows of a comparison meet it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from eval.peers.envs import OURS


@dataclass(frozen=True, slots=True)
class Target:
    """Our KL divergence is at most `limit` times that of the best of `peers`."""

    model: str
    format: str
    peers: tuple[str, ...]
    limit: float


BOTH = ("gptqmodel", "llmcompressor")
AWQ_PEERS = ("autoawq", "gptqmodel", "llmcompressor")
TARGETS = (
    Target("qwen3-outlier", "gptq:int4", BOTH, 0.4),
    Target("qwen3-outlier", "awq:int4", AWQ_PEERS, 0.6),
    Target("qwen3-demo", "gptq:int4", BOTH, 0.8),
    Target("qwen3-demo", "awq:int4", AWQ_PEERS, 0.8),
    Target("qwen3-moe", "gptq:int4", ("gptqmodel",), 0.8),
    Target("qwen3-moe", "awq:int4", ("gptqmodel",), 0.8),
    *(
        Target(model, format_key, ("auto_round",), 1.1)
        for model in ("qwen3-outlier", "qwen3-demo", "qwen3-moe")
        for format_key in ("gptq:int4", "awq:int4")
    ),
    *(
        Target(model, "int8", ("llmcompressor",), 1.0)
        for model in ("qwen3-outlier", "qwen3-demo", "qwen3-moe")
    ),
)


VARIANTS = ("default", "fast")
"""Of qwen3q; each is held to every target."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One target beside what was measured."""

    target: Target
    variant: str
    ours: float | None
    """KL divergence, nats per position; None without a row."""
    best: float | None
    best_peer: str
    absent: tuple[str, ...]
    """Peers of the target without a figure."""
    ratio: float | None
    ratio_stderr: float | None
    """From both standard errors, taken as independent. Both are measured on the same rows, so
    this is rather too large than too small."""

    @property
    def verdict(self) -> str:
        """`yes`, `no`, or what was not measured."""
        if self.ratio is None:
            return "not measured"
        if self.ratio > self.target.limit:
            return "no"
        return "yes, of those measured" if self.absent else "yes"


def outcomes(rows: list[dict[str, Any]]) -> list[Outcome]:
    """Every target beside the rows, for each variant; of a peer's variants, its best counts."""
    return [_outcome(target, variant, rows) for target in TARGETS for variant in VARIANTS]


def _outcome(target: Target, variant: str, rows: list[dict[str, Any]]) -> Outcome:
    measured = [
        row
        for row in rows
        if row["model"] == target.model and row["format"] == target.format and "problem" not in row
    ]
    of_ours = [row for row in measured if row["quantizer"] == OURS]
    ours = _best([row for row in of_ours if row["option"] == variant])
    best = _best([row for row in measured if row["quantizer"] in target.peers])
    absent = tuple(p for p in target.peers if all(row["quantizer"] != p for row in measured))
    ratio = error = None
    if ours and best:
        ratio = ours["kl_mean"] / best["kl_mean"]
        error = ratio * math.hypot(*(row["kl_stderr"] / row["kl_mean"] for row in (ours, best)))
    return Outcome(
        target=target,
        variant=variant,
        ours=ours["kl_mean"] if ours else None,
        best=best["kl_mean"] if best else None,
        best_peer=best["quantizer"] if best else "",
        absent=absent,
        ratio=ratio,
        ratio_stderr=error,
    )


def _best(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    return min(rows, key=lambda row: float(row["kl_mean"]), default=None)
