"""The gate of ``qwen3q eval``: its options over a suite's, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from qwen3q.cli.output import stdout_console

if TYPE_CHECKING:
    from qwen3q.evaluate.gate_run import GateOptions
    from qwen3q.evaluate.tables import Table

_AROUND = 3
"""Letters that a column takes beside its cells."""


def gate_options(base: GateOptions | None, asked: bool, **given: Any) -> GateOptions | None:
    """A suite's gate, or the default one if it is ``asked`` for, with what was given.

    Args:
        given: fields of ``GateOptions``; None and False were not given.

    Raises:
        UsageError: options of a gate that is not asked for.
    """
    from qwen3q.errors import UsageError
    from qwen3q.evaluate.gate_run import GateOptions
    from qwen3q.evaluate.tasks import Level

    level = given.get("level")
    if level not in (None, *Level):
        raise UsageError(f"{level!r} is no level.", f"Known: {', '.join(Level)}.")
    changes = {
        name: value for name, value in given.items() if value is not None and value is not False
    }
    if level is not None:
        changes["level"] = Level(level)
    if base is None and not asked:
        if changes:
            raise UsageError("Options of the gate need --gate or --suite.")
        return None
    return replace(base or GateOptions(), **changes)


def show_gate(report: Mapping[str, Any]) -> None:
    """The gate's tables, if it was asked for."""
    from qwen3q.evaluate.gate_tables import gate_tables

    show_tables(gate_tables(report))


def show_tables(tables: Iterable[tuple[str, Table]]) -> None:
    """Titles and tables of the report, on the terminal.

    Columns that have no room beside the others follow below, after the name once more.
    """
    from rich.table import Table as Drawn

    console = stdout_console()
    for name, cells in tables:
        title: str | None = name
        widths = [_least_width(cells, column) for column in range(len(cells.heads))]
        for columns in _side_by_side(widths, console.width):
            drawn = Drawn(title=title, title_style="bold", title_justify="left")
            for column in columns:
                justify: Literal["left", "right"] = (
                    "right" if column >= cells.text_columns else "left"
                )
                head, width = cells.heads[column], widths[column]
                drawn.add_column(head, justify=justify, overflow="fold", min_width=width)
            for row in cells.rows:
                drawn.add_row(*(row[column] for column in columns))
            console.print(drawn)
            title = None


def _least_width(cells: Table, column: int) -> int:
    """Letters: figures break between words where the terminal is narrow, names anywhere."""
    right = column >= cells.text_columns
    longest = max(len(row[column]) for row in cells.rows)
    word = max(map(len, cells.heads[column].split()), default=0)
    return max(min(9 if right else 12, longest), word)


def _side_by_side(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that go into each table of at most ``room`` letters, the first into every one."""
    tables: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        here = [*tables[-1], column]
        if len(tables[-1]) > 1 and sum(widths[c] + _AROUND for c in here) + 1 > room:
            tables.append([0])
        tables[-1].append(column)
    return tables
