"""The thinking gate's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3q.evaluate.groups import named_by_run
from qwen3q.evaluate.tables import Table

Row = Mapping[str, Any]


def gate_tables(report: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Title and table of each mode and set of questions: answers right and how thinking went.

    Failed artefacts are strong.
    """
    rows = report.get("gate", [])
    out = []
    for needles, thinking in dict.fromkeys((_needle_words(row), _thinks(row)) for row in rows):
        chosen = [r for r in rows if (_needle_words(r), _thinks(r)) == (needles, thinking)]
        subject = f"Needles in {needles:,} words" if needles else "Answers"
        title = f"{subject} {'with' if thinking else 'without'} thinking"
        out.append((title, _table(named_by_run(chosen), thinking)))
    return out


def _table(rows: Sequence[Row], thinking: bool) -> Table:
    ropes = len({row.get("rope") for row in rows}) > 1
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.get("by_kind", {})))
    kinds = kinds if len(kinds) > 1 else []
    heads = ["artefact", *(["RoPE"] if ropes else []), "verdict", "right", "change, 95 %", *kinds]
    heads += ["thinking tokens", "change, 95 %"] if thinking else []
    cells = []
    for row in rows:
        line = [str(row["artefact"]), *([str(row.get("rope"))] if ropes else [])]
        line += [str(row["verdict"]), f"{row['right']} of {row.get('replies', row['questions'])}"]
        line.append(_interval(row.get("change"), "+z.0%"))
        line += [_right(row.get("by_kind", {}).get(kind)) for kind in kinds]
        if thinking:
            line += [
                f"{row['thinking_tokens']:.0f}",
                _interval(row.get("thinking_change"), "+z.0f"),
            ]
        cells.append((*line, ", ".join(f"{n} {name}" for name, n in row["flaws"].items())))
    failed = frozenset(i for i, row in enumerate(rows) if row["verdict"] == "fail")
    return Table((*heads, "flaws"), tuple(cells), 3 if ropes else 2, failed)


def _interval(change: Mapping[str, float] | None, form: str) -> str:
    return f"{change['low']:{form}} to {change['high']:{form}}" if change else ""


def _right(of_kind: Mapping[str, int] | None) -> str:
    return f"{of_kind['right']}/{of_kind['asked']}" if of_kind else ""


def _needle_words(row: Row) -> int:
    return int(row.get("needle_words", 0))


def _thinks(row: Row) -> bool:
    return bool(row["mode"] == "thinking")
