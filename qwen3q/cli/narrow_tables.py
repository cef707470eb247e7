"""Tables of the report on a terminal that may be narrower than they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from qwen3q.cli.output import stdout_console

if TYPE_CHECKING:
    from qwen3q.evaluate.tables import Table

_AROUND = 3
"""Letters that a column takes beside its cells."""
_LEAST_NAME, _LEAST_FIGURE = 12, 9
"""Letters that a column of names or figures keeps at least."""
_PARTS = (r"[^- /]*[- /]?", r"[^-_. /]*[-_. /]?")
"""What a name is broken between: its words, or pieces of them where one is too long for a line."""


def show_tables(tables: Iterable[tuple[str | None, Table]]) -> None:
    """Titles and tables, on the terminal; names break at hyphens.

    Columns that have no room beside the others follow below, after the names once more.
    """
    from rich.table import Table as Drawn

    console = stdout_console()
    for name, cells in tables:
        title = name
        least = [_least_width(cells, column) for column in range(len(cells.heads))]
        around = [width + _AROUND for width in least]
        for columns in side_by_side(around, cells.text_columns, console.width - 1):
            drawn = Drawn(title=title, title_style="bold", title_justify="left")
            widths = _name_widths(cells, columns, least, console.width)
            for column in columns:
                justify: Literal["left", "right"] = "left" if column in widths else "right"
                head = cells.heads[column]
                drawn.add_column(head, justify=justify, overflow="fold", min_width=least[column])
            for row in cells.rows:
                drawn.add_row(
                    *(
                        folded(row[column], widths[column]) if column in widths else row[column]
                        for column in columns
                    )
                )
            console.print(drawn)
            title = None


def side_by_side(widths: Sequence[int], names: int, room: int) -> list[list[int]]:
    """Columns that go into each table of at most ``room`` letters, ``names`` into every one.

    Args:
        widths: of each column, with what stands between it and the next.
    """
    tables = [list(range(names))]
    for column in range(names, len(widths)):
        here = [*tables[-1], column]
        if len(tables[-1]) > names and sum(widths[c] for c in here) > room:
            tables.append(list(range(names)))
        tables[-1].append(column)
    return tables


def folded(name: str, width: int) -> str:
    """A name in lines of at most ``width`` letters, broken after hyphens where that can be."""
    lines = [""]
    for word in re.findall(_PARTS[0], name):
        for part in [word] if len(word) <= width else re.findall(_PARTS[1], word):
            while len(lines[-1]) + len(part.rstrip()) > width:
                if not lines[-1]:
                    lines[-1], part = part[:width], part[width:]
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _least_width(cells: Table, column: int) -> int:
    """Letters: figures break between words where the terminal is narrow."""
    least = _LEAST_NAME if column < cells.text_columns else _LEAST_FIGURE
    word = max(map(len, cells.heads[column].split()), default=0)
    return max(min(least, _longest(cells, column)), word)


def _name_widths(
    cells: Table, columns: Sequence[int], least: Sequence[int], room: int
) -> dict[int, int]:
    """Letters of each column of names: what figures leave, taken from the widest first."""
    widths = {c: max(_longest(cells, c), len(cells.heads[c])) for c in columns}
    names = [column for column in columns if column < cells.text_columns]
    over = sum(width + _AROUND for width in widths.values()) + 1 - room
    for _ in range(over):
        widest = max(names, key=lambda c: widths[c] - least[c])
        widths[widest] = max(widths[widest] - 1, least[widest])
    return {column: widths[column] for column in names}


def _longest(cells: Table, column: int) -> int:
    return max(len(row[column]) for row in cells.rows)
