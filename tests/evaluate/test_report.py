"""Reports: what they say, merging, broken input, and that a browser draws the page."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from report_example import EVERYTHING, EXAMPLE, FULL, LONG, report, row

from qwen3q.cli.eval_fidelity import show_report
from qwen3q.errors import UsageError
from qwen3q.evaluate.groups import comparable
from qwen3q.evaluate.report import (
    SCHEMA,
    layer_errors,
    merge_reports,
    read_report,
    write_report,
)
from qwen3q.evaluate.report_html import report_html
from qwen3q.evaluate.report_markdown import report_markdown
from qwen3q.evaluate.speed_tables import speed_series


def test_the_pareto_front_is_what_nothing_beats():
    (group,) = comparable(EXAMPLE)
    assert [r["artefact"] for r in group.rows] == ["Q8_0", "Q4_K_M", "Q4_0", "Q2_K"]
    assert {group.rows[i]["artefact"] for i in group.front} == {"Q8_0", "Q4_K_M", "Q2_K"}


def test_equals_stay_on_the_front_together():
    (group,) = comparable(report(row("a", 10, 0.5), row("b", 10, 0.5), row("c", 10, 0.6)))
    assert group.front == {0, 1}


def test_merging_keeps_runs_apart_and_same_tokens_together():
    other = report(row("IQ4_XS", 4_900_000, 0.009), machine="two")
    code = report(row("Q8_0", 8_000_000, 0.001), text="b")
    merged = merge_reports([EXAMPLE, other, code])
    assert [r["run"] for r in merged["results"]] == [0, 0, 0, 0, 1, 2]
    assert [run["machine"]["processor"] for run in merged["runs"]] == ["one", "two", "one"]
    assert [len(group.rows) for group in comparable(merged)] == [5, 1]
    assert [r["run"] for r in EXAMPLE["results"]] == [0] * 4
    assert merge_reports([EXAMPLE, merged, other]) == merged


def test_an_artefact_of_two_runs_is_told_apart_in_every_table():
    other = json.loads(json.dumps(EVERYTHING))
    other["runs"][0]["machine"]["processor"] = "two"
    merged = merge_reports([EVERYTHING, other])
    for text in (report_html(merged), report_markdown(merged)):
        for name, tables in (("Q2_K", 1), ("Q4_0", 4), ("demo at 127.0.0.1:8000", 1)):
            for number in (1, 2):
                assert text.count(f"{name} (run {number})") >= tables
    assert "(run " not in report_markdown(EVERYTHING)


def test_points_and_maps_of_two_runs_are_told_apart():
    """And those of two artefacts that have one format."""
    other = json.loads(json.dumps(EXAMPLE))
    other["runs"][0]["machine"]["processor"] = "two"
    other["results"] += [
        row("mine", 6_000_000, 0.004, format="gptq:int4"),
        row("yours", 6_500_000, 0.003, format="gptq:int4"),
    ]
    page = report_html(merge_reports([EXAMPLE, other]))
    labels = re.findall(r'<text class="label[^>]*>([^<]+)</text>', page)
    assert len(labels) == len(set(labels)) == 10
    assert {"Q2_K (run 1)", "Q2_K (run 2)", "mine", "yours"} <= set(labels)
    titles = re.findall(r"<h3>(Q2_K[^<]*) <small>", page)
    assert titles == ["Q2_K (run 1)", "Q2_K (run 2)"]


def test_figures_that_round_to_nothing_have_no_sign():
    text = report_markdown(report(row("same", 10, -2e-9, kl_mean_stderr=3.0, kl_p99_stderr=3.0)))
    assert "0.00000 ± 3.00000" in text
    assert "-0.0" not in text


def test_the_command_can_be_typed_again():
    spaced = report(row("a", 10, 0.5))
    spaced["runs"][0]["command"] = ["qwen3q", "eval", "my models/a b.gguf"]
    assert "qwen3q eval 'my models/a b.gguf'" in report_markdown(spaced)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_page_has_everything_in_it():
    text = report_html(EXAMPLE)
    page = Page()
    page.feed(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("svg") == 2
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert not any(key in attrs for _, attrs in page.tags for key in ("src", "href", "onclick"))
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@media (prefers-color-scheme: dark)" in text
    assert "@media print" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_plots_are_well_formed_and_within_their_frame():
    plots = re.findall(r"<svg.*?</svg>", report_html(EXAMPLE), re.DOTALL)
    assert len(plots) > 1
    for svg in plots:
        root = ElementTree.fromstring(svg)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for mark in root.iter():
            for name, limit in (("cx", width), ("cy", height), ("x1", width), ("y2", height)):
                assert 0 <= float(mark.get(name, 0)) <= limit


def test_points_lie_where_their_figures_say():
    svg = re.findall(r"<svg.*?</svg>", report_html(EXAMPLE), re.DOTALL)[0]
    dots = [m for m in ElementTree.fromstring(svg).iter() if m.tag == "circle"]
    at = {d[0].text.split(":")[0]: (float(d.get("cx")), float(d.get("cy"))) for d in dots}
    by_size = sorted(at, key=lambda name: at[name][0])
    by_height = sorted(at, key=lambda name: -at[name][1])
    assert by_size == ["Q2_K", "Q4_K_M", "Q4_0", "Q8_0"]
    assert by_height == ["Q8_0", "Q4_K_M", "Q4_0", "Q2_K"]
    assert at["Q8_0"][0] - at["Q2_K"][0] == pytest.approx(
        4 * (at["Q4_K_M"][0] - at["Q2_K"][0]), abs=0.5
    )


def test_speed_is_drawn_by_artefact():
    speed = [
        {
            "run": 0,
            "artefact": name,
            "format": name,
            "file_bytes": 1,
            "phase": phase,
            "tokens": tokens,
            "depth": depth,
            "tokens_per_second": 50.0,
            "tokens_per_second_stddev": 2.0,
            "first_token_ms": 3.0,
            "batch": 1,
        }
        for name in ("A", "B")
        for phase, tokens, depth in (
            ("decode", 64, 0),
            ("decode", 64, 512),
            ("decode", 64, 900),
            ("prefill", 128, 0),
            ("prefill", 512, 0),
        )
    ]
    text = report_html(EXAMPLE | {"speed": speed})
    drawn = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    prefill, decode = drawn[-2:]
    assert [len(list(plot.iter("circle"))) for plot in (prefill, decode)] == [4, 6]
    assert [len(list(plot.iter("path"))) for plot in (prefill, decode)] == [2, 2]


def test_a_report_of_the_float_model_alone_has_no_plot():
    text = report_html(report(row("BF16", 16_000_000, 0.0)))
    assert "<svg" not in text
    assert "BF16" in text


def test_markdown_has_a_row_per_artefact():
    text = report_markdown(EXAMPLE)
    for name in ("**Q8_0**", "**Q4_K_M**", "| Q4_0", "**Q2_K**", "(reference)"):
        assert name in text


def test_written_reports_are_read_again(tmp_path):
    paths = write_report(EXAMPLE, tmp_path / "new")
    assert [p.name for p in paths] == ["report.json", "report.md", "report.html"]
    assert read_report(paths[0]) == EXAMPLE


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "JSON"),
        ("{}", "no report"),
        (json.dumps({"schema": SCHEMA}), "runs"),
        (json.dumps({"schema": SCHEMA, "runs": [{}], "results": []}), "runs"),
        (json.dumps(EXAMPLE | {"results": [{}]}), "results.0.run is absent"),
        (json.dumps(EXAMPLE | {"results": [row("a", 1, 1.0) | {"run": 7}]}), "run is 7, of 1"),
        (
            json.dumps(EXAMPLE | {"results": [row("a", 1, 1.0) | {"kl_mean": "x"}]}),
            "results.0.kl_mean is 'x'",
        ),
        (json.dumps(FULL | {"speed": 4}), "speed is 4: "),
    ],
)
def test_other_files_are_refused(tmp_path, content, says):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=says):
        read_report(path)


def places(part: object, path: tuple = ()) -> Iterator[tuple]:
    """Where every value of a report is."""
    yield path
    if isinstance(part, dict | list):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield from places(value, (*path, key))


def test_a_report_that_is_read_can_be_drawn(tmp_path, capsys):
    """Any value is changed to one of another kind: it is refused by name, or does no harm."""
    others = [None, "", "[/x]", -1, 0, 1.5, 10**30, 1e99, True, [], [1], {}, {"a": 1}, "nan"]
    everything = [path for path in places(EVERYTHING) if len(path) > 1]
    rng = random.Random(7)
    path = tmp_path / "r.json"
    drawn, refusals = 0, []
    for where in rng.sample(everything, 150):
        changed = deepcopy(EVERYTHING)
        *way, last = where
        part = reduce(lambda part, key: part[key], way, changed)
        if rng.random() < 0.2 and isinstance(part, dict):
            del part[last]
        else:
            part[last] = rng.choice(others)
        path.write_text(json.dumps(changed))
        try:
            merged = merge_reports([read_report(path)])
        except UsageError as error:
            refusals.append((where, str(error)))
            continue
        drawn += 1
        write_report(merged, tmp_path / "out")
        show_report(merged, [])
    assert min(drawn, len(refusals)) > 20
    assert all(f" {where[0]}" in said for where, said in refusals)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Q4_0", "gsm8k"))


def test_rows_come_by_divergence_and_those_without_one_last():
    served = row("served", 0, 0.0) | {"kl_mean": None}
    rows = [served, row("Q2", 4, 0.07), row("Q8", 8, 0.0003)]
    [group] = comparable(report(*rows))
    assert [shown["artefact"] for shown in group.rows] == ["Q8", "Q2", "served"]
    assert group.front == {0, 1}


def test_layer_errors_average_experts():
    rows = [{"name": f"model.layers.3.mlp.experts.{e}.up_proj.weight", "error": e} for e in (1, 3)]
    rows.append({"name": "model.layers.3.self_attn.q_proj.weight", "error": 0.5})
    rows += [{"name": name, "error": 1} for name in ("a.b.c.up_proj.weight", "model.layers.7", "x")]
    assert layer_errors({"linears": rows}) == {"3": {"up_proj": 2.0, "q_proj": 0.5}}


def test_memory_is_drawn_measured_above_predicted():
    svg = re.findall(r"<svg.*?</svg>", report_html(FULL), re.DOTALL)[-1]
    bars: dict[str, list[ElementTree.Element]] = {}
    for mark in ElementTree.fromstring(svg).iter("rect"):
        if len(mark):
            bars.setdefault(mark.get("y"), []).append(mark)
    stacks = [bars[y] for y in sorted(bars, key=float)]
    kinds = ["predicted" in stack[0].get("class") for stack in stacks]
    assert kinds == [False, True, False, True, False]
    for stack in stacks:
        ends = [float(m.get("x")) + float(m.get("width")) for m in stack]
        starts = [float(m.get("x")) for m in stack]
        assert starts[1:] == pytest.approx(ends[:-1], abs=0.11)
    weights, kv = (float(m.get("width")) for m in stacks[0][:2])
    assert weights / kv == pytest.approx(16.9 / 6.4, rel=0.01)


def test_one_artefact_on_two_machines_is_two_lines():
    other = FULL | {"runs": report(machine="two")["runs"], "speed": FULL["speed"][:8]}
    merged = merge_reports([FULL, other])
    series = speed_series(merged, "decode", "depth")
    assert {f"{LONG} (run 1)", f"{LONG} (run 2)", "Qwen3-8B-Q4_K_M"} <= set(series)
    assert [len(points) for points in series.values()] == [2] * 11
    text = report_html(merged)
    assert text.count("<h3>Run ") == 2
    assert f"{LONG} (run 2)" in text
    assert "### Run 2" in report_markdown(merged)


def test_rows_without_a_divergence_are_dashes_and_not_drawn():
    nothing = {"kl_mean": None, "kl_mean_stderr": None, "kl_p99": None, "top1": None}
    endpoint = row("http://127.0.0.1:8000", 1, 0.5) | nothing | {"file_bytes": None}
    text = report_html(report(*EXAMPLE["results"], endpoint))
    svg = re.findall(r"<svg.*?</svg>", text, re.DOTALL)[0]
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 4
    cells = text.partition("<td>http://127.0.0.1:8000</td>")[2].partition("</tr>")[0]
    assert cells.count(">–<") == 7
    assert "None" not in text
    assert "| – |" in report_markdown(report(endpoint))


@pytest.fixture
def browser(tmp_path) -> list[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    return [program, *flags, f"--user-data-dir={tmp_path / 'profile'}"]


@pytest.mark.peer
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(tmp_path, browser, scheme):
    page = tmp_path / "report.html"
    page.write_text(report_html(FULL))
    shot = tmp_path / "shot.png"
    flags = ["--window-size=1000,900"]
    if scheme == "dark":
        flags += ["--blink-settings=preferredColorScheme=0"]
    command = [*browser, *flags, f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Content Security Policy" not in done.stderr
    pixels = _pixels(shot)
    background = pixels[2, 2]
    assert (background.mean() > 200) == (scheme == "light")
    drawn = (abs(pixels.astype(int) - background).max(axis=2) > 60).mean()
    assert 0.01 < drawn < 0.5


_CUT_OFF = """<script>
const cut = [];
for (const text of document.querySelectorAll("svg text")) {
  const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
  if (box.x < 0 || box.y < 0 || box.x + box.width > view.width ||
      box.y + box.height > view.height) cut.push(text.textContent);
}
for (const box of document.querySelectorAll(".scroll"))
  if (box.scrollWidth > box.clientWidth + 1) cut.push("table " + box.textContent.slice(0, 40));
document.title = "cut off: " + cut.join("; ") + ".";
</script>"""
_A4_WIDTH = 688
"""CSS pixels of A4 within the style sheet's margins."""


@pytest.mark.peer
@pytest.mark.parametrize("medium", ["screen", "print"])
def test_no_text_is_cut_off(tmp_path, browser, medium):
    text = report_html(FULL).replace("Content-Security-Policy", "x-policy")
    width = 1180
    if medium == "print":
        text, width = text.replace("@media print", "@media all"), _A4_WIDTH
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", f"{_CUT_OFF}</body>"))
    command = [*browser, f"--window-size={width},900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r"<title>(cut off[^<]*)</title>", done.stdout) == ["cut off: ."]


_LETTERS = """<script>
const sizes = [...document.querySelectorAll("svg text")].map(text => {
  const svg = text.ownerSVGElement;
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return parseFloat(getComputedStyle(text).fontSize) * scale;
});
document.title = "letters: " + Math.min(...sizes) + " wide: " + document.body.scrollWidth;
</script>"""


@pytest.mark.peer
def test_a_phone_shows_letters_that_can_be_read(tmp_path, browser):
    page = tmp_path / "report.html"
    text = report_html(FULL).replace("Content-Security-Policy", "x-policy")
    page.write_text(text.replace("</body>", f"{_LETTERS}</body>"))
    command = [*browser, "--window-size=375,900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    ((letters, wide),) = re.findall(r"letters: ([\d.]+) wide: (\d+)", done.stdout)
    assert float(letters) > 8
    assert int(wide) <= 640  # what is wider scrolls by itself


def _pixels(path):
    """A PNG as uint8 ``[height, width, 3]``, with the standard library's zlib."""
    import struct
    import zlib

    import numpy as np

    data = path.read_bytes()[8:]
    body, width, height, channels = b"", 0, 0, 3
    while data:
        (length,) = struct.unpack(">I", data[:4])
        kind, chunk, data = data[4:8], data[8 : 8 + length], data[12 + length :]
        if kind == b"IHDR":
            width, height, _, color = struct.unpack(">IIBB", chunk[:10])
            channels = {2: 3, 6: 4}[color]
        body += chunk if kind == b"IDAT" else b""
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, 1 + channels * width)
    out = np.zeros((height, width, channels), np.uint8)
    above = np.zeros((width, channels), np.uint8)
    for y, raw in enumerate(rows):
        above = out[y] = _unfilter(raw[0], raw[1:].reshape(width, channels), above)
    return out[:, :, :3]


def _unfilter(kind, line, above):
    """Undoes one PNG row filter (PNG specification, section 9)."""
    import numpy as np

    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0, dtype=np.uint8)
    if kind == 2:
        return line + above
    out = np.zeros_like(line)
    left = np.zeros(line.shape[1], int)
    corner = left
    for x in range(len(line)):
        up = above[x].astype(int)
        if kind == 3:
            guess = (left + up) // 2
        else:
            p = left + up - corner
            a, b, c = abs(p - left), abs(p - up), abs(p - corner)
            guess = np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))
        out[x] = (line[x] + guess).astype(np.uint8)
        left, corner = out[x].astype(int), up
    return out
