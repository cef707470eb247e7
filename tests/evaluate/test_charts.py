"""The report's plots: that what they show can be read, and is not more than there is."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from math import log
from xml.etree import ElementTree

import numpy as np
import pytest
from report_example import report, row

from qwen3q.evaluate.charts import layer_heat_map, size_against_divergence, spread
from qwen3q.evaluate.groups import comparable


def test_labels_of_points_close_together_do_not_cover_each_other():
    places = {
        "gguf:Q2_K": (4.06, 0.0617), "gguf:Q3_K_S": (4.38, 0.0346), "gguf:Q4_K_M": (5.23, 0.00712),
        "awq:int4": (7.08, 0.00937), "fp8": (9.72, 0.00213), "gptq:int4": (7.14, 0.00976),
        "int4": (7.06, 0.00967), "int8": (9.75, 0.00038), "bnb:int8": (9.79, 0.00015),
        "bnb:nf4": (7.33, 0.01125), "gguf:BF16": (15.5, 0.000012), "gguf:Q8_0": (8.37, 0.00029),
    }  # fmt: skip
    rows = [row(n, round(1e6 * size), kl, format=n) for n, (size, kl) in places.items()]
    group = comparable(report(*rows))
    svg = ElementTree.fromstring(size_against_divergence(group[0]))
    boxes = []
    for mark in svg.iter("text"):
        if mark.get("class").startswith("label"):
            x, y, width = float(mark.get("x")), float(mark.get("y")), 6.7 * len(mark.text)
            left = x - width * {"start": 0, "middle": 0.5, "end": 1}[mark.get("text-anchor")]
            boxes.append((left, left + width, y - 10, y + 2))
    assert len(boxes) == len(places)
    for a, b in combinations(boxes, 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]


@pytest.mark.parametrize(("unit", "name"), [(1e6, "MB"), (1e9, "GB")])
def test_points_stand_where_the_axes_say(unit, name):
    places = {"Q2_K": (0.9, 0.065), "Q4_K_M": (5.2, 0.0076), "Q8_0": (8.4, 0.0003)}
    rows = [row(n, round(size * unit), kl) for n, (size, kl) in places.items()]
    svg = ElementTree.fromstring(size_against_divergence(comparable(report(*rows))[0]))
    texts = list(svg.iter("text"))
    assert f"size, {name}" in [mark.text for mark in texts]
    ticks = [mark for mark in texts if mark.get("class") == "tick"]
    across = {float(t.get("x")): float(t.text) for t in ticks if t.get("text-anchor") == "middle"}
    up = {float(t.get("y")) - 4: log(float(t.text)) for t in ticks if t.get("text-anchor") == "end"}
    dots = list(svg.iter("circle"))
    assert len(dots) == len(places)
    for dot in dots:
        size, kl = places[dot[0].text.partition(":")[0]]
        assert value_at(float(dot.get("cx")), across) == pytest.approx(size, abs=0.01)
        assert value_at(float(dot.get("cy")), up) == pytest.approx(log(kl), abs=0.01)


def value_at(place: float, ticks: dict[float, float]) -> float:
    return float(np.interp(place, sorted(ticks), [ticks[at] for at in sorted(ticks)]))


def test_errors_that_hardly_differ_look_alike():
    def shares(*errors: float) -> list[float]:
        layers = {str(layer): {"q_proj": error} for layer, error in enumerate(errors)}
        found = re.findall(r'fill-opacity="([\d.]+)"', layer_heat_map(layers, "x"))
        return [float(share) for share in found]

    assert max(shares(0.000700, 0.000715)) < 0.2
    assert shares(0.001, 0.002) == shares(0.001, 0.002, 0.001)[:2] == [0.08, 1]
    assert shares(0.001, 0.01, 0.1) == pytest.approx([0.08, 0.54, 1])


def test_labels_of_lines_keep_apart():
    heights = [50.0, 10.0, 52.0, 51.0]
    moved = spread(heights, 15)
    assert moved == [50, 10, 80, 65]


def test_labels_keep_off_the_line_and_the_ticks():
    rows = [row(n, size, kl) for n, size, kl in (
        ("Q2_K", 4_060_000, 0.065), ("Q4_K_M", 5_230_000, 0.0076), ("Q8_0", 8_370_000, 0.0003)
    )]  # fmt: skip
    svg = ElementTree.fromstring(size_against_divergence(comparable(report(*rows))[0]))
    (line,) = (path for path in svg.iter("path") if path.get("class") == "front")
    points = [tuple(map(float, p.split())) for p in line.get("d")[1:].split("L")]
    for mark in svg.iter("text"):
        if not mark.get("class").startswith("label"):
            continue
        x, y, width = float(mark.get("x")), float(mark.get("y")), 6.7 * len(mark.text)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[mark.get("text-anchor")]
        assert left >= 62, mark.text
        for (x1, y1), (x2, y2) in pairwise(points):
            for share in np.linspace(0, 1, 400):
                px, py = x1 + share * (x2 - x1), y1 + share * (y2 - y1)
                assert not (left < px < left + width and y - 9 < py < y), mark.text
