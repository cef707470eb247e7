"""The thinking gate's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.tables import Table


def gate_tables(report: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Title and table of each mode that was gated: answers right and how thinking went.

    Failed artefacts are strong.
    """
    rows = report.get("gate", [])
    out = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        of_mode = [row for row in rows if row["mode"] == mode]
        flaws = sorted({name for row in of_mode for name in row["flaws"]})
        cells = tuple(_row(row, flaws) for row in of_mode)
        heads = ("artefact", "verdict", "right", "change, 95 %", "thinking tokens", *flaws)
        title = "Answers with thinking" if mode == "thinking" else "Answers without thinking"
        failed = frozenset(i for i, row in enumerate(of_mode) if row["verdict"] == "fail")
        out.append((title, Table(heads, cells, 2, failed)))
    return out


def _row(row: Mapping[str, Any], flaws: list[str]) -> tuple[str, ...]:
    change = row.get("change")
    return (
        str(row["artefact"]),
        str(row["verdict"]),
        f"{row['right']} of {row['questions']}",
        f"{change['low']:+.0%} to {change['high']:+.0%}" if change else "",
        f"{row['thinking_tokens']:.0f}",
        *(str(row["flaws"].get(name, 0)) for name in flaws),
    )
