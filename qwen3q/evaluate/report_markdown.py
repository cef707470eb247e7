"""``report.md``: the report's tables for a repository or a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.gate_tables import gate_tables
from qwen3q.evaluate.groups import comparable, missing_notes
from qwen3q.evaluate.lm_eval_tables import TASKS_NOTE, tasks_table
from qwen3q.evaluate.speed_tables import MEMORY_NOTE, SPEED_NOTE, memory_table, speed_table
from qwen3q.evaluate.streaming_tables import STREAMING_NOTE, streaming_table
from qwen3q.evaluate.tables import facts_table, fidelity_table, markdown

FIDELITY_NOTE = (
    "KL divergence in nats from the float reference's next-token distribution; Δp is the change of "
    "the next token's probability. Standard errors take tokens as independent. Bold: no other "
    "artefact here is both smaller and closer."
)


def report_markdown(report: Mapping[str, Any]) -> str:
    """All sections of the report as Markdown."""
    parts = ["# What the quantization cost"]
    for group in comparable(report):
        title = f"## Fidelity to {group.reference['artefact']} on {group.text.get('name', '')}"
        parts += [title, markdown(fidelity_table(group)), FIDELITY_NOTE]
        parts += missing_notes(group.rows)
    for title, table in gate_tables(report):
        parts += [f"## {title}", markdown(table)]
    tasks = tasks_table(report)
    if tasks is not None:
        parts += ["## Tasks", markdown(tasks), TASKS_NOTE]
    speed = speed_table(report)
    if speed is not None:
        parts += ["## Speed", markdown(speed), SPEED_NOTE]
    memory = memory_table(report)
    if memory is not None:
        parts += ["## Memory", markdown(memory), MEMORY_NOTE]
    streaming = streaming_table(report)
    if streaming is not None:
        parts += ["## Streaming clients", markdown(streaming), STREAMING_NOTE]
    parts.append("## What was run")
    for number, run in enumerate(report["runs"], 1):
        parts += [f"### Run {number}"] if len(report["runs"]) > 1 else []
        parts.append(markdown(facts_table(run)))
    return "\n\n".join(parts) + "\n"
