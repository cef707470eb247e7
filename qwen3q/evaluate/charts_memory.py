"""The memory plot: every artefact's parts as a stack, measured above predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qwen3q.evaluate.charts import WIDTH, tick_range
from qwen3q.evaluate.svg import Canvas, Scale, linear_ticks, plain
from qwen3q.evaluate.tables import size

Row = Mapping[str, Any]

_PARTS = ("weights", "kv", "compute", "rest")
_NAMES = {"weights": "weights", "kv": "KV cache", "compute": "compute", "rest": "rest"}
_BAR, _GAP, _BETWEEN = 18.0, 4.0, 20.0
_LEFT, _RIGHT, _TOP = 250.0, 90.0, 34.0
_NAME_LETTERS = 32


def memory_stack(rows: Sequence[Row]) -> str:
    """A group of one or two bars per artefact and device; empty without rows."""
    if not rows:
        return ""
    groups = [_bars(row) for row in rows]
    largest = max(sum(_figures(parts).values()) for bars in groups for _, parts in bars)
    unit, unit_name = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    ticks = linear_ticks(0, largest / unit)
    count = sum(len(bars) for bars in groups)
    bottom = _TOP + count * (_BAR + _GAP) + len(groups) * _BETWEEN
    canvas = Canvas(WIDTH, bottom + 46, "Memory by part, measured and predicted")
    x = Scale(*tick_range(ticks), _LEFT, WIDTH - _RIGHT)
    _legend(canvas)
    for tick in ticks:
        canvas.line(x(tick), _TOP, x(tick), bottom, "grid")
        canvas.text(x(tick), bottom + 18, plain(tick), "tick", "middle")
    canvas.text((_LEFT + WIDTH - _RIGHT) / 2, bottom + 40, unit_name, "axis", "middle")
    top = _TOP + _BETWEEN / 2
    for row, bars in zip(rows, groups, strict=True):
        middle = top + (len(bars) * (_BAR + _GAP) - _GAP) / 2
        canvas.text(_LEFT - 92, middle, _short(str(row["artefact"])), "name", "end")
        canvas.text(_LEFT - 92, middle + 14, f"{row['device']}, {row['engine']}", "tick", "end")
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
    unit: float,
    top: float,
    names: tuple[str, str],
    figures: Mapping[str, float],
) -> None:
    """One stack; ``names`` are for the tip and for the label beside it."""
    canvas.text(_LEFT - 8, top + _BAR - 5, names[1], "tick", "end")
    kind = "stack" if names[1] == "measured" else "stack predicted"
    start = 0.0
    for number, part in enumerate(_PARTS):
        left, right = x(start / unit), x((start + figures[part]) / unit)
        start += figures[part]
        if right - left < 0.05:
            continue
        tip = f"{names[0]}: {_NAMES[part]} {size(figures[part])}"
        canvas.parts.append(
            f'<rect class="{kind} s{number}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{right - left:.1f}" height="{_BAR:.1f}"><title>{escape(tip)}</title></rect>'
        )
    canvas.text(x(start / unit) + 7, top + _BAR - 5, size(start), "figure")


def _legend(canvas: Canvas) -> None:
    left = _LEFT
    for number, part in enumerate(_PARTS):
        canvas.parts.append(
            f'<rect class="stack s{number}" x="{left:.1f}" y="8" width="12" height="12"/>'
        )
        canvas.text(left + 18, 18, _NAMES[part], "tick")
        left += 44 + 7 * len(_NAMES[part])


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"…{name[1 - _NAME_LETTERS :]}"
