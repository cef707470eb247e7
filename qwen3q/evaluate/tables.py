"""The report's tables as plain cells, for HTML and Markdown alike."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from qwen3q.counts import counted
from qwen3q.evaluate.groups import Group

Row = Mapping[str, Any]

NONE = "–"
"""A figure that there is none of."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; the first ``text_columns`` columns are words, the others figures."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    strong: frozenset[int] = frozenset()


def fidelity_table(group: Group) -> Table:
    """One row per artefact, best divergence first; the Pareto front is strong."""
    heads = (
        "artefact",
        "format",
        "size",
        "bits/weight",
        "perplexity",
        "KL mean",
        "median",
        "99 %",
        "99.9 %",
        "Δp RMS",
        "same top-1",
    )
    reference = group.reference
    first = (
        f"{reference['artefact']} (reference)",
        str(reference["format"]),
        size(reference["file_bytes"]),
        "",
        with_error(reference["perplexity"], reference["perplexity_stderr"], 3),
        *[""] * 6,
    )
    rows = [first] + [_fidelity_row(row) for row in group.rows]
    return Table(heads, tuple(rows), 2, frozenset(index + 1 for index in group.front))


def _fidelity_row(row: Row) -> tuple[str, ...]:
    return (
        str(row["artefact"]),
        str(row["format"]),
        size(row["file_bytes"]),
        optional(row, "bits_per_weight", 1, 2),
        optional(row, "perplexity", 1, 3),
        *(divergence(row, name) for name in ("kl_mean", "kl_median", "kl_p99", "kl_p999")),
        optional(row, "probability_rms", 100, 2, " %"),
        optional(row, "top1", 100, 2, " %"),
    )


def facts_table(run: Row) -> Table:
    """What exactly was run."""
    reference, text, machine = run["reference"], run["text"], run["machine"]
    backend = reference.get("backend") or {}
    rows = [
        ("command", shlex.join(map(str, run.get("command", [])))),
        ("when, with", f"{run.get('created', '')}, qwen3q {run.get('qwen3q', '')}"),
        ("text", f"{text.get('name', '')}, sha256 {text.get('sha256', '')}"),
        (
            "tokens",
            f"{counted(reference.get('chunks', 0), 'chunk')} of {reference.get('context')}, "
            f"scored after position {reference.get('first')}: {reference.get('tokens')} in all",
        ),
        ("tokenizer", f"sha256 {reference.get('tokenizer', '')}"),
        ("reference run by", _words(backend) or "an earlier call; its stored logits were used"),
        ("reference logits", size(reference.get("logits_bytes", 0))),
        ("machine", _words(machine)),
        ("notes", " ".join(map(str, run.get("notes", [])))),
    ]
    return Table(("", ""), tuple(row for row in rows if row[1]), 2)


def size(nbytes: float | None) -> str:
    """``5.23 MB``, decimal units."""
    if nbytes is None:
        return NONE
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= one:
            return f"{nbytes / one:.2f} {unit}"
    return f"{nbytes / 1e3:.1f} kB"


def with_error(value: float, stderr: float, digits: int) -> str:
    return f"{value:z,.{digits}f} ± {stderr:,.{digits}f}"


def divergence(row: Row, name: str) -> str:
    """A divergence with as many decimals as its standard error has two digits for."""
    stderr = row.get(f"{name}_stderr")
    digits = 5
    if isinstance(stderr, int | float) and 0 < stderr < 1:
        digits = min(7, 1 - floor(log10(stderr)))
    return optional(row, name, 1, digits)


def optional(row: Row, name: str, factor: float, digits: int, unit: str = "") -> str:
    """A figure with its standard error, as far as the row has them."""
    value, stderr = row.get(name), row.get(f"{name}_stderr")
    if not isinstance(value, int | float):
        return NONE
    if not isinstance(stderr, int | float):
        return f"{factor * value:z.{digits}f}{unit}"
    return with_error(factor * value, factor * stderr, digits) + unit


def _words(facts: Row) -> str:
    given = ((key, value) for key, value in facts.items() if value not in ("", None, []))
    return ", ".join(f"{key} {_word(value)}" for key, value in given)


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_words(value)})"
    return "; ".join(map(_word, value)) if isinstance(value, list) else str(value)


def _escaped(cell: str) -> str:
    """Neither the end of a cell nor a tag; names of files hold anything."""
    return cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def markdown(table: Table) -> str:
    """A pipe table; strong rows are bold in their first cell."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"

    marks = ["---" if c < table.text_columns else "---:" for c in range(len(table.heads))]
    rows = [
        (f"**{cells[0]}**", *cells[1:]) if index in table.strong else cells
        for index, cells in enumerate(table.rows)
    ]
    return "\n".join([line(table.heads), line(marks), *map(line, rows)])
