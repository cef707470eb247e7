"""The report's plots: size against divergence, error by layer, speed by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import inf, log10
from typing import Any

from qwen3q.evaluate.groups import INDISTINGUISHABLE, Group, plot_labels
from qwen3q.evaluate.svg import Canvas, Scale, axes, linear_ticks, log_ticks

WIDTH = 860.0
_KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LEAST_SPAN = log10(2)
"""Of a heat map's colours: errors that hardly differ look alike."""
_CELLS_WITH_TEXT = 16
"""Layers up to which a heat map's cells have room for their figure."""

_LABEL_HEIGHT = 15.0
_LABEL_LETTERS = 26
_LETTER_WIDTH = 8.5
"""Of the bold label in the widest usual font, pixels."""
_COLOURS = 8


def size_against_divergence(group: Group) -> str:
    """Every artefact as a point, with one standard error; the Pareto front as a line.

    Empty if no artefact differs measurably from the reference.
    """
    shown = [(index, row) for index, row in enumerate(group.rows) if is_drawn(row)]
    if not shown:
        return ""
    sizes = [row["file_bytes"] for _, row in shown]
    unit, name = (1e9, "GB") if max(sizes) >= 1e9 else (1e6, "MB")
    x_ticks = linear_ticks(min(sizes) / unit, max(sizes) / unit)
    divergences = [row["kl_mean"] for _, row in shown]
    y_ticks = log_ticks(min(divergences), max(divergences))
    canvas = Canvas(WIDTH, 440, "Size against KL divergence")
    x = Scale(*tick_range(x_ticks), 70, WIDTH - 30)
    y = Scale(*tick_range(y_ticks), 385, 34, log=True)
    axes(canvas, x, y, (x_ticks, y_ticks), (f"size, {name}", "mean KL divergence, nats (log)"))
    placed = [(index, row, x(row["file_bytes"] / unit), y(row["kl_mean"])) for index, row in shown]
    front = sorted((px, py) for index, _, px, py in placed if index in group.front)
    if len(front) > 1:
        canvas.path(front, "front")
        canvas.avoid(front)
    for index, row, px, py in placed:
        error = row["kl_mean_stderr"]
        low, high = (
            max(row["kl_mean"] - error, y_ticks[0]),
            min(row["kl_mean"] + error, y_ticks[-1]),
        )
        canvas.line(px, y(low), px, y(high), "whisker")
        canvas.avoid([(px, y(low)), (px, y(high))])
        tip = (
            f"{row['artefact']}: {row['file_bytes']:,} bytes, KL {row['kl_mean']:.6f} ± {error:.6f}"
        )
        canvas.dot(px, py, "best" if index in group.front else "beaten", tip)
    labels = plot_labels([row for _, row in shown])
    for (index, _, px, py), label in zip(placed, labels, strict=True):
        canvas.label(px, py, label, "label" if index in group.front else "label muted")
    return canvas.finish()


def is_drawn(row: Mapping[str, Any]) -> bool:
    """Whether a row has a size and a divergence that can be told from none."""
    divergence = row["kl_mean"]
    return divergence is not None and divergence > INDISTINGUISHABLE and bool(row["file_bytes"])


def layer_heat_map(errors: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Relative output error by layer (columns) and kind of linear (rows), darker is larger."""
    layers = sorted(errors, key=int)
    kinds = [kind for kind in _KINDS if any(kind in errors[layer] for layer in layers)]
    values = [v for layer in layers for v in errors[layer].values() if v > 0]
    if not values or not kinds:
        return ""
    low = log10(min(values))
    span = max(log10(max(values)) - low, _LEAST_SPAN)
    left, top, high_cell = 86.0, 8.0, 26.0
    wide = (WIDTH - left - 10) / len(layers)
    canvas = Canvas(WIDTH, top + high_cell * len(kinds) + 44, title)
    for row, kind in enumerate(kinds):
        y = top + row * high_cell
        canvas.text(left - 8, y + high_cell / 2 + 4, kind, "tick", "end")
        for column, layer in enumerate(layers):
            value = errors[layer].get(kind)
            if value is None:
                continue
            share = (log10(value) - low) / span if value > 0 else 0.0
            x = left + column * wide
            tip = f"layer {layer} {kind}: {value:.3g}"
            canvas.parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{wide - 1.5:.1f}" '
                f'height="{high_cell - 1.5:.1f}" fill-opacity="{0.08 + 0.92 * share:.3f}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if len(layers) <= _CELLS_WITH_TEXT:
                kind_class = "figure on" if share > 0.55 else "figure"
                middle = x + wide / 2
                canvas.text(middle, y + high_cell / 2 + 3, f"{value:.2g}", kind_class, "middle")
    every = max(1, len(layers) // 16)
    for column, layer in enumerate(layers):
        if column % every == 0:
            x = left + (column + 0.5) * wide
            canvas.text(x, top + high_cell * len(kinds) + 15, layer, "tick", "middle")
    canvas.text(left, top + high_cell * len(kinds) + 36, "layer", "axis")
    return canvas.finish()


def speed_lines(series: Mapping[str, Sequence[Mapping[str, Any]]], x_name: str) -> str:
    """Tokens per second of several artefacts; each row has ``x``, ``value`` and ``stddev``."""
    rows = [row for points in series.values() for row in points]
    if not rows:
        return ""
    x_ticks = linear_ticks(0, max(row["x"] for row in rows))
    y_ticks = linear_ticks(0, max(row["value"] + row["stddev"] for row in rows))
    longest = min(_LABEL_LETTERS, max(map(len, series)))
    right = WIDTH - 24 - _LETTER_WIDTH * longest
    canvas = Canvas(WIDTH, 360, f"Tokens per second by {x_name}")
    x = Scale(*tick_range(x_ticks), 70, right)
    y = Scale(*tick_range(y_ticks), 305, 34)
    axes(canvas, x, y, (x_ticks, y_ticks), (x_name, "tokens per second"))
    for number, (name, points) in enumerate(series.items()):
        kind = _series_class(number)
        path = [(x(row["x"]), y(row["value"])) for row in points]
        if len(path) > 1:
            canvas.path(path, f"series {kind}")
        for row, (px, py) in zip(points, path, strict=True):
            low, high = max(0, row["value"] - row["stddev"]), row["value"] + row["stddev"]
            canvas.line(px, y(low), px, y(min(high, y_ticks[-1])), f"series thin {kind}")
            tip = f"{name}, {row['x']}: {row['value']:.2f} ± {row['stddev']:.2f} tokens/s"
            canvas.dot(px, py, f"mark {kind}", tip, 4)
    ends = [(y(points[-1]["value"]), name) for name, points in series.items()]
    heights = spread([end for end, _ in ends], _LABEL_HEIGHT, y.start)
    for number, height in enumerate(heights):
        text = short_name(ends[number][1], _LABEL_LETTERS)
        canvas.text(right + 14, height + 4, text, f"label {_series_class(number)}")
    return canvas.finish()


def spread(heights: Sequence[float], apart: float, lowest: float = inf) -> list[float]:
    """Heights in the same order, moved so that each keeps ``apart`` from the one above.

    They move down, and up again where the last would come below ``lowest``.
    """
    out = list(heights)
    order = sorted(range(len(out)), key=lambda i: heights[i])
    above = -inf
    for index in order:
        above = out[index] = max(heights[index], above + apart)
    below = lowest + apart
    for index in reversed(order):
        below = out[index] = min(out[index], below - apart)
    return out


def short_name(name: str, letters: int) -> str:
    """The end of a name that is longer than ``letters``, which is what tells artefacts apart."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _series_class(number: int) -> str:
    """Eight colours; a ninth line and on is dashed."""
    return f"s{number % _COLOURS}" + (" again" if number >= _COLOURS else "")


def tick_range(ticks: Sequence[float]) -> tuple[float, float]:
    """First and last tick, apart even if they are one."""
    return (ticks[0], ticks[-1]) if ticks[0] != ticks[-1] else (ticks[0], ticks[0] + 1)
