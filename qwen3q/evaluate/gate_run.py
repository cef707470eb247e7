"""The gate over a reference and its artefacts, as rows for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions
from qwen3q.evaluate.gate import Mode, Reply, Verdict, answer, compare
from qwen3q.evaluate.tasks import Kind, Level, TaskOptions, make_tasks
from qwen3q.progress import ProgressFn, silent


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What is asked.

    Attributes:
        each: questions per kind.
        needle_words: length of the text a needle lies in; 0 asks for none.
        max_tokens: where a reply is cut off.
    """

    level: Level = Level.STANDARD
    each: int = 20
    needle_words: int = 0
    max_tokens: int = 2048
    seed: int = 0

    @property
    def tasks(self) -> TaskOptions:
        kinds: tuple[Kind, ...] = (Kind.ARITHMETIC, Kind.ORDERING, Kind.COPYING)
        if self.needle_words:
            kinds = (*kinds, Kind.NEEDLE)
        return TaskOptions(kinds, self.level, self.each, max(1, self.needle_words), self.seed)


def run_gate(
    reference: Artefact,
    artefacts: Sequence[Artefact],
    options: GateOptions,
    backend: BackendOptions,
    progress: ProgressFn = silent,
) -> list[dict[str, Any]]:
    """Rows of ``report.json``'s ``gate``, the reference's first.

    Raises:
        Qwen3qError: a model can't be run, or has no chat template.
    """
    tasks = make_tasks(options.tasks)
    rows = []
    base: dict[Mode, list[Reply]] = {}
    for artefact in (reference, *artefacts):

        def report(done: int, total: int, _: str, name: str = artefact.name) -> None:
            progress(done, total, f"{name}: questions")

        replies = answer(artefact, tasks, Mode, options.max_tokens, backend, report)
        base = base or replies
        for mode in Mode:
            verdict = None if replies is base else compare(base[mode], replies[mode], options.seed)
            rows.append(_row(artefact, mode, replies[mode], verdict))
    return rows


def passed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no artefact failed in any mode."""
    return all(row["verdict"] != "fail" for row in rows)


def _row(
    artefact: Artefact, mode: Mode, replies: Sequence[Reply], verdict: Verdict | None
) -> dict[str, Any]:
    flaws = Counter(str(flaw) for reply in replies for flaw in reply.flaws)
    right = Counter(str(reply.task.kind) for reply in replies if reply.right)
    asked = Counter(str(reply.task.kind) for reply in replies)
    row: dict[str, Any] = {
        "run": 0,
        "artefact": artefact.name,
        "format": artefact.format,
        "file_bytes": artefact.file_bytes,
        "mode": str(mode),
        "verdict": "reference",
        "questions": len(replies),
        "right": sum(reply.right for reply in replies),
        "by_kind": {kind: {"asked": asked[kind], "right": right[kind]} for kind in asked},
        "flaws": dict(sorted(flaws.items())),
        "flawed": sum(bool(reply.flaws) for reply in replies),
        "thinking_tokens": fmean(reply.thinking_tokens for reply in replies),
    }
    if verdict is not None:
        row["verdict"] = "pass" if verdict.passed else "fail"
        row["change"] = asdict(verdict.right)
        row["flaw_change"] = asdict(verdict.flawed)
    return row
