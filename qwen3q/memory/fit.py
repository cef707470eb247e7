"""Every model and quantization that fits given GPUs or a processor, best quality first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qwen3q.errors import UsageError
from qwen3q.memory.estimate import (
    Estimate,
    Verdict,
    default_engine,
    estimate,
    only_engine,
    reads,
)
from qwen3q.memory.gpus import Gpu
from qwen3q.memory.quality import expected_quality
from qwen3q.memory.settings import Engine, Settings, check_kv, kv_types
from qwen3q.memory.weights import FORMATS, release_weights
from qwen3q.models.catalog import Release, catalog
from qwen3q.plan.gguf_types import GGUF_PREFIX, file_type

_NOT_OFFERED = ("fp16", "nvfp4", "gguf:F16")
"""Copies of the original in another 16 bits, and what is planned but not written."""

Run = tuple[Release, Estimate]


@dataclass(frozen=True, slots=True)
class Fit:
    """One choice: how good it should be, what it takes, and the command that gets it."""

    release: Release
    estimate: Estimate
    quality: float
    command: str


def possible_runs(
    gpus: Sequence[Gpu], settings: Settings, *, kv: str | None = None, engine: Engine | None = None
) -> list[Run]:
    """Every release in every format that its engine reads, whether it fits or not.

    Args:
        kv: cache type, each engine's default if None.
        engine: only what this engine runs; each format's own if None.

    Raises:
        UsageError: no model runs so on any GPU, with the reason of the first one.
    """
    engine = engine or only_engine(gpus)
    if engine is None:
        check_kv(kv)
    runs: list[Run] = []
    refusal: UsageError | None = None
    for release in catalog():
        for fmt in FORMATS:
            runner = engine or default_engine(fmt)
            if fmt in _NOT_OFFERED or (fmt == "gguf:MXFP4_MOE" and not release.config.is_moe):
                continue
            if not reads(release.config, fmt, runner):
                continue
            try:
                type_k, type_v = kv_types(kv, runner)
                shape = replace(settings, type_k=type_k, type_v=type_v)
                weights = release_weights(release, fmt)
                run = estimate(
                    release.title, release.config, weights, runner, shape, gpus,
                    find_max_context=False,
                )  # fmt: skip
            except UsageError as error:
                refusal = refusal or error
                continue
            runs.append((release, run))
    if not runs and refusal is not None:
        raise refusal
    return runs


def fitting(runs: Iterable[Run], *, min_speed: float | None = None) -> list[Fit]:
    """What fits, best first; of formats of one model with equal quality, the smaller first.

    Args:
        runs: from ``possible_runs``.
        min_speed: decode tokens per second at the end of the context, at least; drops what can't
            be predicted.
    """
    found = [
        Fit(release, run, expected_quality(release, run.weights), command(release, run))
        for release, run in runs
        if run.verdict is not Verdict.NO and _fast_enough(run, min_speed)
    ]
    return sorted(found, key=lambda fit: (-fit.quality, fit.estimate.total))


def command(release: Release, run: Estimate) -> str:
    """What gets this artefact, as it can be typed: with a calibration where the type needs one."""
    fmt = run.weights.format
    if fmt == "bf16":
        return f"qwen3q download {release.repos[0]}"
    needs = fmt.startswith(GGUF_PREFIX) and file_type(fmt.removeprefix(GGUF_PREFIX)).needs_imatrix
    calibration = " --calibration balanced" if needs else ""
    return f"qwen3q quantize {release.repos[0]} --to {fmt}{calibration}"


def _fast_enough(run: Estimate, min_speed: float | None) -> bool:
    if min_speed is None:
        return True
    return run.speed is not None and run.speed.decode_full >= min_speed
