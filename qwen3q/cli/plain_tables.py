"""Tables and sentences in plain text that keep to a terminal's width.

Without rich, which takes longer to import than a table of estimates to compute.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from qwen3q.cli.narrow_tables import side_by_side

WIDE, NARROW = 2, 1
"""Blanks between columns, and where there is no room for them."""


def columns(
    rows: Sequence[Sequence[str]],
    room: int | None,
    left: Sequence[int] = (0,),
    *,
    names: int = 1,
) -> list[str]:
    """Columns as wide as their widest cell, aligned right but for ``left``.

    Where ``room`` is too narrow they move together; what has no room then either follows below,
    after the first ``names`` once more.

    Args:
        rows: of equal length, but that a row of one cell is a heading over those that follow.
        room: letters of a line; None for any number.
    """
    widths = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(len(rows[0]))]
    if room is None or sum(widths) + WIDE * (len(widths) - 1) <= room:
        return _drawn(rows, widths, range(len(widths)), left, WIDE)
    lines: list[str] = []
    for block in side_by_side([width + NARROW for width in widths], names, room + NARROW):
        lines += [""] * bool(lines) + _drawn(rows, widths, block, left, NARROW)
    return lines


def table_width(rows: Sequence[Sequence[str]]) -> int:
    """Letters of a line of ``columns`` that has the room it wants."""
    widths = [max(len(row[i]) for row in rows if len(row) > 1) for i in range(len(rows[0]))]
    return sum(widths) + WIDE * (len(widths) - 1)


def folded_lines(lines: Sequence[str], room: int | None) -> list[str]:
    """Sentences, broken between words; what follows is set in by two more than the first line."""
    if room is None:
        return list(lines)
    found: list[str] = []
    for line in lines:
        inset = line[: len(line) - len(line.lstrip())]
        found += textwrap.wrap(
            line, room, subsequent_indent=inset + "  " if inset else "",
            break_long_words=False, break_on_hyphens=False,
        ) or [""]  # fmt: skip
    return found


def folded_command(command: str, room: int | None, inset: str) -> list[str]:
    """A command, continued as a shell reads it where a line has no room for its options."""
    if room is None or len(inset) + len(command) <= room:
        return [inset + command]
    first, *options = command.split(" --")
    lines = [inset + first]
    for option in options:
        if len(lines[-1]) + len(f" --{option} \\") <= room:
            lines[-1] += f" --{option}"
        else:
            lines[-1] += " \\"
            lines.append(f"{inset}  --{option}")
    return lines


def _drawn(
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    shown: Sequence[int],
    left: Sequence[int],
    blanks: int,
) -> list[str]:
    lines = []
    for row in rows:
        cells = (row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i]) for i in shown)
        lines.append(row[0] if len(row) == 1 else (" " * blanks).join(cells).rstrip())
    return lines
