"""The report of a comparison: a table per model, the targets, and what gave no figure."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.bench.timing import machine
from eval.peers.compare import LENGTH, QUANTIZERS, ROWS, read_rows
from eval.peers.targets import Outcome, outcomes

NAMES = {
    "gptqmodel": "GPTQModel",
    "llmcompressor": "LLM Compressor",
    "autoawq": "AutoAWQ",
    "auto_round": "AutoRound",
}
_UNPUBLISHED = ("folder", "peak_rss_mb")
FORMATS = ("gptq:int4", "int4", "awq:int4", "int8")


def publish(results: Path, out: Path) -> str:
    """Write `quality.md` and `quality.json` into a folder. Returns the page."""
    rows = sorted(read_rows(results), key=_order)
    found = outcomes(rows)
    page = markdown(rows, found)
    data = {
        "machine": machine(),
        "rows": [{k: v for k, v in row.items() if k not in _UNPUBLISHED} for row in rows],
        "targets": [{**asdict(outcome), "verdict": outcome.verdict} for outcome in found],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "quality.md").write_text(page)
    return page


def markdown(rows: list[dict[str, Any]], found: list[Outcome]) -> str:
    """The report as a page."""
    measured = [row for row in rows if "problem" not in row]
    first = measured[0]
    started = sorted(row["started"] for row in measured)
    lines = [
        "# Quality, side by side with other quantizers",
        "",
        "Made by `python -m eval.peers compare` and `report`. Every quantizer got the same "
        f"{ROWS} rows of {LENGTH}",
        "calibration tokens, and one judge measured all: each written folder is dequantized by a "
        "reader that",
        "shares no code with any writer, run in float32 by transformers, and set beside the float "
        "model on",
        f"{first['tokens']:,} tokens of held-out books (rows of {first['context']}). KL is "
        "KL(float || quantized) in nats per token, over all",
        "positions, ± its standard error over rows; top-1 is the share of positions where both "
        "rank the same",
        "token first. W8A8 (`int8`) is measured with activations rounded to int8 per token too. "
        "Groups of 128.",
        "qwen3q runs evenly spaced ones of these rows, as many as its recipe says are enough for "
        "the model:",
        "16 tokens per input channel of the widest linear, 8 with recipe `fast`; `all` runs every "
        "row. The",
        "peers run all they are given.",
        "LLM Compressor's `gptq:int4` and `awq:int4` are W4A16 folders, the only 4-bit layout it "
        "writes.",
        f"{machine()}, {first['threads']} threads per run, no GPU; runs began between "
        f"{started[0]} and {started[-1]}",
        "UTC, and rows are kept from run to run where version, tokens and threads are equal. The "
        "machine had",
        "other work at the time: of the times, trust `CPU s`, and that only roughly.",
        "Times of qwen3q include reading and writing, the others' do not.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += ["", *_table(model, [row for row in measured if row["model"] == model])]
    notes = dict.fromkeys(row["note"] for row in measured if "note" in row)
    lines += ["", *(f"† {note}" for note in notes), "", *_targets(found)]
    unfinished = [row for row in rows if "problem" in row]
    if unfinished:
        lines += ["", "Without a figure:", ""]
        lines += [
            f"- {_who(row)}, {row['format']} on {row['model']}: {row['problem']}"
            for row in unfinished
        ]
    return "\n".join(lines) + "\n"


def _table(model: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"## {model}",
        "",
        f"Perplexity of the float model: {rows[0]['float_ppl']:.3f}.",
        "",
        "| format | quantizer | version | KL (nats) | top-1 | perplexity | bytes | s | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = " †" if "note" in row else ""
        lines.append(
            f"| {row['format']} | {_who(row)} | {row['version']} "
            f"| {row['kl_mean']:.6f} ± {row['kl_stderr']:.6f} | {row['top1']:.2%} "
            f"| {row['ppl']:.3f} | {row['file_bytes']:,} | {row['seconds']:.0f}{mark} "
            f"| {row['cpu_seconds']:.0f} |"
        )
    return lines


def _targets(found: list[Outcome]) -> list[str]:
    lines = [
        "## Targets",
        "",
        "The ratio is the KL divergence of qwen3q over that of the best of the peers named; at "
        "most the limit",
        "is asked. 0.10 means a tenth of the peer's loss.",
        "",
        "| model | format | of the best of | best | its KL | recipe | qwen3q | ratio | at most "
        "| met |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for o in found:
        peers = ", ".join(
            f"{NAMES[p]} (no figure)" if p in o.absent else NAMES[p] for p in o.target.peers
        )
        ratio = "-" if o.ratio is None else f"{o.ratio:.3f} ± {o.ratio_stderr:.3f}"
        lines.append(
            f"| {o.target.model} | {o.target.format} | {peers} | {NAMES.get(o.best_peer, '-')} "
            f"| {_figure(o.best)} | {o.variant} | {_figure(o.ours)} | {ratio} | {o.target.limit} "
            f"| {o.verdict} |"
        )
    return lines


def _who(row: dict[str, Any]) -> str:
    name = NAMES.get(row["quantizer"], f"**{row['quantizer']}**")
    return name if row["option"] == "default" else f"{name} ({row['option']})"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["model"] != "qwen3-outlier",
        row["model"],
        FORMATS.index(row["format"]),
        list(QUANTIZERS).index(row["quantizer"]),
        row["option"],
    )
