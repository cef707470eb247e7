"""The memory plot: every artefact's parts as a stack, measured above predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qwen3q.evaluate.charts import WIDTH, short_name, tick_range
from qwen3q.evaluate.svg import Canvas, Scale, linear_ticks, plain
from qwen3q.evaluate.tables import size

Row = Mapping[str, Any]

_PARTS = ("weights", "kv", "compute", "rest")
_NAMES = {"weights": "weights", "kv": "KV cache", "compute": "compute", "rest": "rest"}
_BAR, _GAP, _BETWEEN = 18.0, 4.0, 20.0
_RIGHT, _TOP = 84.0, 34.0
_NAME_LETTERS = 32
_LETTER_WIDTH = 8.5
_BAR_NAMES = 92.0
"""Room for the words left of the bars."""


def memory_stack(rows: Sequence[Row]) -> str:
    """A group of one or two bars per artefact and device; empty without rows."""
    if not rows:
        return ""
    groups = [_bars(row) for row in rows]
    largest = max(sum(_figures(parts).values()) for bars in groups for _, parts in bars)
    unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    ticks = linear_ticks(0, largest / unit[0])
    count = sum(len(bars) for bars in groups)
    bottom = _TOP + count * (_BAR + _GAP) + len(groups) * _BETWEEN
    canvas = Canvas(WIDTH, bottom + 46, "Memory by part, measured and predicted")
    names = [short_name(str(row["artefact"]), _NAME_LETTERS) for row in rows]
    left = 2 + _LETTER_WIDTH * max(16, *map(len, names))
    x = Scale(*tick_range(ticks), left + _BAR_NAMES, WIDTH - _RIGHT)
    _legend(canvas, x.start)
    for tick in ticks:
        canvas.line(x(tick), _TOP, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 18, plain(tick), "tick", "middle")
    canvas.text((x.start + x.end) / 2, bottom + 40, unit[1], "axis", "middle")
    top = _TOP + _BETWEEN / 2
    for row, name, bars in zip(rows, names, groups, strict=True):
        middle = top + (len(bars) * (_BAR + _GAP) - _GAP) / 2
        canvas.text(left, middle, name, "name", "end")
        canvas.text(left, middle + 14, f"{row['device']}, {row['engine']}", "tick", "end")
        for label, parts in bars:
            _bar(canvas, x, unit, top, (f"{row['artefact']}, {label}", label), _figures(parts))
            top += _BAR + _GAP
        top += _BETWEEN
    return canvas.finish()


def _bars(row: Row) -> list[tuple[str, Row]]:
    bars: list[tuple[str, Row]] = [("measured", row)]
    if row.get("predicted"):
        bars.append(("predicted", row["predicted"]))
    return bars


def _figures(parts: Row) -> dict[str, float]:
    return {part: parts.get(f"{part}_bytes") or 0 for part in _PARTS}


def _bar(
    canvas: Canvas,
    x: Scale,
    unit: tuple[float, str],
    top: float,
    names: tuple[str, str],
    figures: Mapping[str, float],
) -> None:
    """One stack; ``names`` are for the tip and for the label beside it."""
    canvas.text(x.start - 8, top + _BAR - 5, names[1], "tick", "end")
    kind = "stack" if names[1] == "measured" else "stack predicted"
    start = 0.0
    for part in _PARTS:
        left, right = x(start / unit[0]), x((start + figures[part]) / unit[0])
        start += figures[part]
        if right - left < 0.05:
            continue
        tip = f"{names[0]}: {_NAMES[part]} {size(figures[part])}"
        canvas.parts.append(
            f'<rect class="{kind} {part}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{right - left:.1f}" height="{_BAR:.1f}"><title>{escape(tip)}</title></rect>'
        )
    total = f"{start / unit[0]:.2f} {unit[1]}"
    canvas.text(x(start / unit[0]) + 7, top + _BAR - 5, total, "figure total")


def _legend(canvas: Canvas, left: float) -> None:
    for part in _PARTS:
        canvas.parts.append(
            f'<rect class="stack {part}" x="{left:.1f}" y="8" width="12" height="12"/>'
        )
        canvas.text(left + 18, 18, _NAMES[part], "tick")
        left += 44 + 7 * len(_NAMES[part])
