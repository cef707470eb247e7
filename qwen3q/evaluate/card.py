"""An artefact's model card with the figures of an evaluation in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.writer import file_sha256
from qwen3q.errors import UsageError
from qwen3q.evaluate.gate_tables import gate_tables
from qwen3q.evaluate.groups import comparable
from qwen3q.evaluate.lm_eval_tables import TASKS_NOTE, tasks_table
from qwen3q.evaluate.report_markdown import FIDELITY_NOTE
from qwen3q.evaluate.tables import Table, fidelity_table, markdown
from qwen3q.files import write_text
from qwen3q.quantize.names import MANIFEST_NAME

START = "<!-- qwen3q eval -->"
END = "<!-- /qwen3q eval -->"


def update_card(card: Path, report: Mapping[str, Any], artefact: str) -> None:
    """Puts the figures of ``artefact`` into ``card``, in place of those of an earlier call.

    Everything outside the two marker comments stays as it is. The folder's manifest, if it has
    one, is told the card's new checksum.

    Raises:
        UsageError: there is no such card.
        DiskError: it can't be written.
    """
    text = read_card(card)
    line_end = "\r\n" if "\r\n" in text else "\n"
    section = f"{START}\n{_section(report, artefact)}\n{END}".replace("\n", line_end)
    before, found, rest = text.partition(START)
    _, _, after = rest.partition(END)
    if not found:
        before, after = f"{text.rstrip()}{2 * line_end}", line_end
    write_text(card, before + section + after)
    _update_manifest(card)


def read_card(card: Path) -> str:
    """A card that figures can be put into.

    Raises:
        UsageError: there is none, or its markers are broken.
    """
    try:
        text = card.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"There is no model card at {card}.", "--update-card is for folders with a README.md."
        ) from None
    _, found, rest = text.partition(START)
    if found and END not in rest:
        raise UsageError(f"{card} has {START} without {END}.", "Remove that line.")
    return text


def _update_manifest(card: Path) -> None:
    """Gives the card's new checksum to the folder's manifest, if it has one."""
    path = card.with_name(MANIFEST_NAME)
    if not path.is_file():
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entry = manifest["outputs"][card.name]
    except (ValueError, KeyError, TypeError):
        return
    entry["bytes"], entry["sha256"] = card.stat().st_size, file_sha256(card)
    write_text(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _section(report: Mapping[str, Any], artefact: str) -> str:
    parts = ["## Evaluation"]
    for group in comparable(report):
        table = fidelity_table(group)
        rows = tuple(
            cells
            for index, cells in enumerate(table.rows)
            if index == 0 or group.rows[index - 1]["artefact"] == artefact
        )
        if len(rows) > 1:
            run = group.reference
            parts.append(markdown(Table(table.heads, rows, table.text_columns)))
            parts.append(
                f"On {group.text.get('name')}: {run.get('tokens'):,} positions, chunks of "
                f"{run.get('context')} tokens. {FIDELITY_NOTE.removesuffix(_BOLD)}"
            )
    answered = _answers_of(report, artefact)
    for title, answers in gate_tables(answered):
        parts += [f"### {title}", markdown(answers)]
    tasks = tasks_table(answered)
    if tasks is not None:
        parts += ["### Tasks", markdown(tasks), TASKS_NOTE]
    return "\n\n".join(parts)


def _answers_of(report: Mapping[str, Any], artefact: str) -> dict[str, Any]:
    """What one artefact answered, and its float model."""
    names = {artefact} | {r["reference"]["artefact"] for r in report["runs"] if r.get("reference")}
    return {
        section: [row for row in report.get(section, []) if row["artefact"] in names]
        for section in ("gate", "tasks")
    }


_BOLD = " Bold: no other artefact here is both smaller and closer."
