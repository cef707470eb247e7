"""The table of lm-evaluation-harness's tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.groups import named_by_run
from qwen3q.evaluate.tables import Table, optional

TASKS_NOTE = (
    "Tasks of lm-evaluation-harness, value ± standard error. The change is against the float "
    "model, question by question."
)


def tasks_table(report: Mapping[str, Any]) -> Table | None:
    """Float model and artefacts under each other, task by task; None if none was run."""
    rows = named_by_run(report.get("tasks", []))
    if not rows:
        return None
    order = dict.fromkeys((row["task"], row["metric"], row["filter"]) for row in rows)
    cells = tuple(
        _row(row)
        for key in order
        for row in rows
        if (row["task"], row["metric"], row["filter"]) == key
    )
    heads = ("task", "metric", "artefact", "value", "change", "questions", "shots")
    return Table(heads, cells, 3)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    kind = "" if row["filter"] == "none" else f" ({row['filter']})"
    return (
        str(row["task"]),
        f"{row['metric']}{kind}",
        str(row["artefact"]),
        optional({**row, "value_stderr": row.get("stderr")}, "value", 1, 4),
        optional(row, "change", 1, 4),
        _count(row.get("questions")),
        _count(row.get("fewshot")),
    )


def _count(value: Any) -> str:
    return str(value) if isinstance(value, int) else ""
