"""Axes, marks and labels as SVG text. Colours come from the page's style sheet by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import ceil, floor, hypot, log10

_TICKS = 6


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = log10(value), log10(low), log10(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low or 1.0)


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    raw = (high - low) / (_TICKS - 1) or 1.0
    power = 10 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = floor(low / step), ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around ``low`` to ``high``; powers alone over a wide range."""
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if log10(high / low) < 3 else (1,)
    ticks = [m * 10.0**decade for decade in decades for m in steps]
    below = max((t for t in ticks if t <= low), default=ticks[0])
    above = min((t for t in ticks if t >= high), default=ticks[-1])
    return [t for t in ticks if below <= t <= above]


def plain(value: float) -> str:
    """A short decimal, without an exponent: ``0.0005``, ``12``."""
    text = f"{value:.10f}".rstrip("0").rstrip(".")
    return text or "0"


@dataclass(slots=True)
class Canvas:
    """A drawing under construction.

    Attributes:
        title: read aloud by screen readers.
        boxes: where marks, labels, axes and avoided lines are, as (left, top, right, bottom).
    """

    width: float
    height: float
    title: str
    parts: list[str] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(
            f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        data = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{kind}" d="{data}"/>')

    def dot(self, x: float, y: float, kind: str, tip: str, radius: float = 5) -> None:
        self.parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{escape(tip)}</title></circle>"
        )
        self.boxes.append((x - radius, y - radius, x + radius, y + radius))

    def avoid(self, points: Sequence[tuple[float, float]]) -> None:
        """Keeps labels off the line through ``points``, where there is another side."""
        for (x1, y1), (x2, y2) in pairwise(points):
            steps = ceil(hypot(x2 - x1, y2 - y1) / 4) or 1
            for step in range(steps + 1):
                x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
                self.boxes.append((x - 2, y - 2, x + 2, y + 2))

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def label(self, x: float, y: float, text: str, kind: str) -> None:
        """Text beside a mark, on the first side where it covers nothing."""
        width = 7.5 * len(text)
        sides = [
            (x + 9, y + 4, "start"),
            (x - 9, y + 4, "end"),
            (x, y - 10, "middle"),
            (x, y + 19, "middle"),
            (x + 9, y - 9, "start"),
            (x - 9, y + 16, "end"),
            (x + 9, y + 16, "start"),
            (x - 9, y - 9, "end"),
        ]
        sides += [
            (x + sideways, y + away, anchor)
            for away in (-24, 31, -39, 46)
            for sideways, anchor in ((9, "start"), (-9, "end"))
        ]
        shift = {"start": 0.0, "middle": width / 2, "end": width}
        best: tuple[float, tuple[float, float, str], tuple[float, float, float, float]] | None = (
            None
        )
        for side in sides:
            left = side[0] - shift[side[2]]
            box = (left, side[1] - 11, left + width, side[1] + 3)
            outside = box[0] < 2 or box[2] > self.width - 2
            cost = sum(_overlap(box, other) for other in self.boxes) + 1e4 * outside
            if best is None or cost < best[0]:
                best = (cost, side, box)
        assert best is not None
        self.boxes.append(best[2])
        self.text(best[1][0], best[1][1], text, kind, best[1][2])

    def finish(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" '
            f'aria-label="{escape(self.title)}">{"".join(self.parts)}</svg>'
        )


def axes(
    canvas: Canvas,
    x: Scale,
    y: Scale,
    ticks: tuple[list[float], list[float]],
    names: tuple[str, str],
) -> None:
    """Grid, tick labels and axis names; ``names`` are x's and y's."""
    for tick in ticks[0]:
        canvas.line(x(tick), y.start, x(tick), y.end, "grid")
        canvas.text(x(tick), y.start + 18, plain(tick), "tick", "middle")
    for tick in ticks[1]:
        canvas.line(x.start, y(tick), x.end, y(tick), "grid")
        canvas.text(x.start - 8, y(tick) + 4, plain(tick), "tick", "end")
    canvas.boxes += [
        (0, y.end - 25, x.start - 6, canvas.height),
        (0, y.start + 5, canvas.width, canvas.height),
    ]
    canvas.text((x.start + x.end) / 2, y.start + 40, names[0], "axis", "middle")
    canvas.text(x.start, y.end - 12, names[1], "axis")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
