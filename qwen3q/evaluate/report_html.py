"""``report.html``: one page with everything in it; no network, light and dark, printable."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from qwen3q.evaluate.charts import is_drawn, layer_heat_map, size_against_divergence, speed_lines
from qwen3q.evaluate.charts_memory import memory_stack
from qwen3q.evaluate.gate_tables import gate_tables
from qwen3q.evaluate.groups import Group, comparable, missing_notes, named_by_run
from qwen3q.evaluate.lm_eval_tables import TASKS_NOTE, tasks_table
from qwen3q.evaluate.speed_tables import (
    MEMORY_NOTE,
    SPEED_NOTE,
    memory_table,
    speed_series,
    speed_table,
)
from qwen3q.evaluate.streaming_tables import STREAMING_NOTE, streaming_table
from qwen3q.evaluate.tables import Table, facts_table, fidelity_table, size

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_GATE_NOTE = (
    "<p class=note>The same questions and random numbers. The change of the share of right answers "
    "is against the float model, question by question, with its 95 % bootstrap interval; an "
    "artefact fails (bold) where that interval, or the one of flawed replies, shows it worse. "
    "Inconclusive: the float model has too few right for a loss of all to show.</p>"
)


def report_html(report: Mapping[str, Any]) -> str:
    """The whole page."""
    groups = comparable(report)
    body = [_head(report, groups)]
    for group in groups:
        body += _fidelity(group)
    body += _layers(report)
    body += [_section(title, _table(table) + _GATE_NOTE) for title, table in gate_tables(report)]
    tasks = tasks_table(report)
    if tasks is not None:
        body.append(_section("Tasks", f"{_table(tasks)}<p class=note>{escape(TASKS_NOTE)}</p>"))
    body += _speed(report)
    body += _memory(report)
    body += _streaming(report)
    runs = "".join(
        (f"<h3>Run {number}</h3>" if len(report["runs"]) > 1 else "")
        + _table(facts_table(run), kind="facts")
        for number, run in enumerate(report["runs"], 1)
    )
    body.append(_section("What was run", runs))
    style = (resources.files("qwen3q.data") / "report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>What the quantization cost</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(report: Mapping[str, Any], groups: list[Group]) -> str:
    count = len(report["results"])
    names = sorted({str(group.reference["artefact"]) for group in groups})
    runs = report["runs"]
    against = f" against {', '.join(names)}" if names else ""
    lead = f"{count} artefact{'s' if count != 1 else ''}{against}, on identical tokens."
    when = ", ".join(sorted({str(run.get("created", ""))[:10] for run in runs}))
    version = escape(str(runs[0].get("qwen3q", "")))
    return (
        f"<header><h1>What the quantization cost</h1><p class=lead>{escape(lead)}</p>"
        f"<p class=muted>{escape(when)} · qwen3q {version}</p></header>"
    )


def _fidelity(group: Group) -> list[str]:
    text = escape(str(group.text.get("name", "")))
    title = f"Fidelity to {escape(str(group.reference['artefact']))} on {text}"
    chart = size_against_divergence(group)
    hidden = [str(row["artefact"]) for row in group.rows if not is_drawn(row)]
    caption = (
        "Lower and further left is better. The line joins the Pareto front: artefacts than which "
        "no other is both smaller and closer to the reference. Bars are one standard error."
    )
    if hidden:
        caption += f" Not drawn, as no divergence shows: {escape(', '.join(hidden))}."
    parts = [f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"] if chart else []
    parts.append(_table(fidelity_table(group)))
    tokens = group.reference.get("tokens", 0)
    part = "the second half of each" if group.reference.get("first") else "all of each"
    parts.append(
        f"<p class=note>{tokens:,} positions of the text “{text}”, chunks of "
        f"{group.reference.get('context')} tokens, {part} scored. KL divergence "
        "from the reference's next-token distribution in nats; Δp is the change of the next "
        "token's probability. ± is one standard error, tokens taken as independent; the "
        "definitions are those of llama-perplexity. Bold: on the Pareto front.</p>"
    )
    parts += [f"<p class=note>{escape(note)}</p>" for note in missing_notes(group.rows)]
    return [_section(title, "".join(parts))]


def _layers(report: Mapping[str, Any]) -> list[str]:
    maps = []
    for row in named_by_run(report["results"]):
        chart = layer_heat_map(row.get("layer_errors") or {}, f"Error by layer, {row['artefact']}")
        if chart:
            name = escape(str(row["artefact"]))
            maps.append(
                f"<figure><h3>{name} <small>{escape(size(row['file_bytes']))}</small></h3>{chart}"
                "</figure>"
            )
    if not maps:
        return []
    note = (
        "<p class=note>Squared error of each linear's output over its squared output, on the "
        "calibration tokens, as the quantizer reported it. Stronger colour is larger, by "
        "logarithm within one artefact.</p>"
    )
    return [_section("Error by layer", "".join(maps) + note)]


_CURVES = (
    ("prefill", "tokens", "Prefill by length of the prompt", "prompt tokens"),
    ("prefill", "depth", "Prefill by depth", "tokens in the context before"),
    ("prefill", "batch", "Prefill by batch", "sequences side by side"),
    ("decode", "depth", "Decode by depth", "tokens in the context before"),
    ("decode", "batch", "Decode by batch", "sequences side by side"),
)


def _speed(report: Mapping[str, Any]) -> list[str]:
    table = speed_table(report)
    if table is None:
        return []
    parts = []
    for phase, along, title, x_name in _CURVES:
        chart = speed_lines(speed_series(report, phase, along), x_name)
        if chart:
            parts.append(f"<figure><h3>{title}</h3>{chart}</figure>")
    note = f"<p class=note>{escape(SPEED_NOTE)}</p>"
    return [_section("Speed", "".join(parts) + _table(table, kind="inline") + note)]


def _memory(report: Mapping[str, Any]) -> list[str]:
    table = memory_table(report)
    if table is None:
        return []
    chart = memory_stack(named_by_run(report.get("memory", [])))
    figure = f"<figure>{chart}<figcaption>{escape(MEMORY_NOTE)}</figcaption></figure>"
    return [_section("Memory", figure + _table(table, kind="inline"))]


def _streaming(report: Mapping[str, Any]) -> list[str]:
    table = streaming_table(report)
    if table is None:
        return []
    note = f"<p class=note>{escape(STREAMING_NOTE)}</p>"
    return [_section("Streaming clients", _table(table) + note)]


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(table: Table, kind: str = "") -> str:
    def row(cells: tuple[str, ...], tag: str, strong: bool = False) -> str:
        marks = ["" if c < table.text_columns else " class=n" for c in range(len(cells))]
        inner = "".join(
            f"<{tag}{mark}>{_cell(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True)
        )
        mark = " class=strong" if strong else " class=first" if cells[0] else ""
        return f"<tr{mark}>{inner}</tr>"

    head = f"<thead>{row(table.heads, 'th')}</thead>" if any(table.heads) else ""
    body = "".join(
        row(cells, "td", index in table.strong) for index, cells in enumerate(table.rows)
    )
    return f'<div class="scroll {kind}"><table>{head}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A cell's text; a standard error goes under its figure."""
    figure, between, error = text.partition(" ± ")
    if not between:
        return escape(text)
    unit = " %" if error.endswith(" %") else ""
    return f"{escape(figure)}{unit}<small>± {escape(error.removesuffix(' %'))}</small>"
