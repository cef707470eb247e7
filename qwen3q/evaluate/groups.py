"""What a report compares: results on the same tokens against the same reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_SAME = ("artefact", "tokenizer", "chunks", "context", "first", "parse_special")
INDISTINGUISHABLE = 1e-6
"""A mean divergence below this (nats) is the arithmetic's, not the quantization's."""
_LONGEST_FORMAT = 24
"""Letters of a format that labels a point."""


@dataclass(frozen=True, slots=True)
class Group:
    """Results that may be held against each other.

    Attributes:
        reference: the float model's facts, of the group's first run.
        text: name and hash of the text.
        rows: best divergence first, those without one last.
        front: artefacts that no other beats in both size and divergence, as row indices.
    """

    reference: Row
    text: Row
    rows: tuple[Row, ...]
    front: frozenset[int]


def comparable(report: Mapping[str, Any]) -> list[Group]:
    """The report's results in groups, in order of their first run."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in report["results"]:
        run = report["runs"][row["run"]]
        key = (run["text"].get("sha256"), *(run["reference"].get(name) for name in _SAME))
        groups.setdefault(key, []).append(row)
    out = []
    for rows in groups.values():
        rows = named_by_run(sorted(rows, key=divergence_rank))
        run = report["runs"][rows[0]["run"]]
        out.append(Group(run["reference"], run["text"], tuple(rows), pareto_front(rows)))
    return out


def named_by_run(rows: Sequence[Row]) -> list[Row]:
    """The rows; an artefact that several runs measured is told apart by its run."""
    runs: dict[str, set[int]] = {}
    for row in rows:
        runs.setdefault(str(row["artefact"]), set()).add(row.get("run", 0))
    return [
        {**row, "artefact": f"{row['artefact']} (run {row['run'] + 1})"}
        if len(runs[str(row["artefact"])]) > 1
        else row
        for row in rows
    ]


def divergence_rank(row: Row) -> tuple[bool, float]:
    """Sorts rows by divergence, those without one last."""
    return row["kl_mean"] is None, float(row["kl_mean"] or 0)


def pareto_front(rows: Sequence[Row]) -> frozenset[int]:
    """Indices of rows that no other row equals or beats in size and divergence both.

    A row without a size or a divergence is not on it.
    """
    known = [
        (index, row)
        for index, row in enumerate(rows)
        if row["file_bytes"] is not None and row["kl_mean"] is not None
    ]

    def beats(a: Row, b: Row) -> bool:
        ours, theirs = (a["file_bytes"], a["kl_mean"]), (b["file_bytes"], b["kl_mean"])
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    return frozenset(
        index for index, row in known if not any(beats(other, row) for _, other in known)
    )


def plot_labels(rows: Sequence[Row]) -> list[str]:
    """How a plot names artefacts: each by its format without ``gguf:`` if that is short and its
    alone, by its format and run if those are, else by its name."""
    formats = [str(row["format"]).removeprefix("gguf:") for row in rows]
    with_runs = [f"{name} (run {row['run'] + 1})" for name, row in zip(formats, rows, strict=True)]
    alone, alone_in_run = Counter(formats), Counter(with_runs)
    labels = []
    for row, name, with_run in zip(rows, formats, with_runs, strict=True):
        told = name if alone[name] == 1 else with_run if alone_in_run[with_run] == 1 else ""
        labels.append(told if told and len(name) <= _LONGEST_FORMAT else str(row["artefact"]))
    return labels


def missing_notes(rows: Sequence[Row]) -> list[str]:
    """Why figures are null: each sentence once, after the artefacts that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for sentence in (row.get("missing") or {}).values():
            about.setdefault(str(sentence), []).append(str(row["artefact"]))
    return [f"{', '.join(names)}: {sentence}" for sentence, names in about.items()]
