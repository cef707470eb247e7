"""``report.json``: what one or more runs measured. docs/evaluation.md describes the schema."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwen3q import __version__
from qwen3q.errors import UsageError
from qwen3q.evaluate.fidelity import Fidelity
from qwen3q.evaluate.measure import Measured, ReferenceFacts, Run
from qwen3q.files import make_folder, write_text

_FAMILY = "qwen3q-eval/"
SCHEMA = f"{_FAMILY}1"

_GIVE = "Give the report.json that `qwen3q eval ... --out DIR` wrote."

_WITHOUT_ERROR = ("tokens", "kl_max")


def run_report(run: Run, text_name: str, command: Sequence[str]) -> dict[str, Any]:
    """The report of one run.

    Args:
        command: the words that started it, to be shown as they are.
    """
    entry = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "qwen3q": __version__,
        "command": list(command),
        "machine": machine_facts(),
        "text": {"name": text_name, "sha256": run.reference.key.text},
        "reference": _reference(run.reference),
    }
    results = [_result(measured, 0) for measured in run.results]
    return {"schema": SCHEMA, "runs": [entry], "results": results}


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of all runs, each once and in order; figures of the same run stay together."""
    from qwen3q.evaluate.report_schema import SECTIONS

    merged: dict[str, Any] = {"schema": SCHEMA, "runs": []} | {name: [] for name in SECTIONS}
    for report in reports:
        numbers = {}
        for number, run in enumerate(report["runs"]):
            if run not in merged["runs"]:
                numbers[number] = len(merged["runs"])
                merged["runs"].append(run)
        for section in SECTIONS:
            rows = [row for row in report.get(section, []) if row["run"] in numbers]
            merged[section] += [{**row, "run": numbers[row["run"]]} for row in rows]
    return {key: value for key, value in merged.items() if value or key in ("runs", "results")}


def read_report(path: Path) -> dict[str, Any]:
    """Reads ``report.json`` and holds it against its schema.

    Raises:
        UsageError: no such file, no report of this version, or one that was changed since.
    """
    from qwen3q.evaluate.report_schema import first_fault

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Can't read {path}: {error.strerror}.", _GIVE) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is no JSON, or not all of it.", _GIVE) from None
    schema = report.get("schema") if isinstance(report, dict) else None
    if str(schema).startswith(_FAMILY) and schema != SCHEMA:
        raise UsageError(
            f"{path} has schema {schema}, and this release reads {SCHEMA}.",
            "Merge it with the release of qwen3q that wrote it.",
        )
    if not isinstance(report, dict) or schema != SCHEMA:
        raise UsageError(f"{path} is no report of `qwen3q eval` (schema {SCHEMA}).", _GIVE)
    fault = first_fault(report)
    if fault is not None:
        raise UsageError(
            f"{path} is not as `qwen3q eval` writes it: {fault}.",
            "Give the file as it was written.",
        )
    return report


def write_report(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes ``report.json``, ``report.md`` and ``report.html`` into ``folder``."""
    from qwen3q.evaluate.report_html import report_html
    from qwen3q.evaluate.report_markdown import report_markdown

    texts = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        "report.md": report_markdown(report),
        "report.html": report_html(report),
    }
    make_folder(folder)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def machine_facts() -> dict[str, Any]:
    """What ran it, without a name that tells whose it is."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _reference(facts: ReferenceFacts) -> dict[str, Any]:
    return {
        "artefact": facts.artefact.name,
        "format": facts.artefact.format,
        "file_bytes": facts.artefact.file_bytes,
        "perplexity": facts.perplexity,
        "perplexity_stderr": facts.perplexity_stderr,
        "tokens": facts.key.rows,
        **asdict(facts.key),
        "backend": dict(facts.backend),
        "logits_bytes": facts.logits_bytes,
        "seconds": round(facts.seconds, 3),
    }


def _result(measured: Measured, run: int) -> dict[str, Any]:
    artefact = measured.artefact
    bits = artefact.bits_per_weight
    row: dict[str, Any] = {
        "run": run,
        "artefact": artefact.name,
        "format": artefact.format,
        "file_bytes": artefact.file_bytes,
        "bits_per_weight": None if bits is None else round(bits, 4),
    }
    for name in Fidelity.__slots__:
        value = getattr(measured.fidelity, name, None)
        if name in _WITHOUT_ERROR:
            row[name] = value
        else:
            row[name] = value.value if value else None
            row[f"{name}_stderr"] = value.stderr if value else None
    if measured.missing:
        row["missing"] = dict(measured.missing)
    row["backend"] = dict(measured.backend)
    row["seconds"] = round(measured.seconds, 3)
    errors = layer_errors(artefact.report)
    if errors:
        row["layer_errors"] = errors
    return row


def layer_errors(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The quantizer's relative output error by layer and kind of linear; experts are averaged."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in report.get("linears", []):
        words = str(row["name"]).split(".")
        if len(words) > 4 and words[:2] == ["model", "layers"]:
            found.setdefault(words[2], {}).setdefault(words[-2], []).append(float(row["error"]))
    return {
        layer: {kind: sum(values) / len(values) for kind, values in kinds.items()}
        for layer, kinds in found.items()
    }
