"""The files beside the shards: config, tokenizer, model card, report and manifest.

Nothing in them depends on when or how fast the work ran, except ``report.json``, which holds
the seconds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen3q import __version__
from qwen3q.checkpoint.writer import file_sha256, sync_folder
from qwen3q.errors import DiskError, UsageError
from qwen3q.formats.folder import quantization_config
from qwen3q.models.config import Qwen3Config, read_config_json
from qwen3q.models.source import ModelSource
from qwen3q.plan.plan import Plan
from qwen3q.plan.schemes import Layout, Scheme
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.card import model_card
from qwen3q.quantize.journal import Unit
from qwen3q.quantize.layer_notes import mixed_machines, notes_by_layers
from qwen3q.quantize.local_plan import copied_files
from qwen3q.quantize.names import (
    CARD_NAME,
    CONFIG_NAME,
    GPTQ_CONFIG_NAME,
    MANIFEST_NAME,
    NOT_CHECKSUMMED,
    REPORT_NAME,
)

MANIFEST_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FolderJob:
    """One artefact to make.

    Attributes:
        scheme: what it is quantized to.
        plan: every tensor it will hold.
        target: the folder it will be.
        dtypes: dtype of each checkpoint tensor, by name.
        options: what the solver is told, as ``dataclasses.asdict`` gives it; empty where the
            format needs no calibration.
    """

    scheme: Scheme
    plan: Plan
    target: Path
    dtypes: Mapping[str, str]
    options: Mapping[str, Any]

    @property
    def journal(self) -> Path:
        """Where its journal lies until it is complete: beside the target."""
        return self.target.with_name(f".{self.target.name}.journal.jsonl")


def artefact_name(title: str, scheme: Scheme) -> str:
    """``Qwen3-8B-GPTQ-Int4``: the model's name and what the Hub appends to it."""
    return f"{title.replace(' ', '-')}-{scheme.suffix}"


def write_side_files(
    folder: Path,
    job: FolderJob,
    source: ModelSource,
    calibration: Mapping[str, Any],
    units: Sequence[Unit],
    run: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    fingerprint: Mapping[str, str],
    progress: ProgressFn = silent,
) -> None:
    """Writes everything beside the shards, the manifest last.

    Args:
        folder: holds the complete shards.
        calibration: what calibrated it, for card, report and manifest; empty if nothing did.
        units: the journal's units.
        run: seconds and peak memory, for the report alone.
        inputs: bytes and sha256 of the source's files, by name.
        fingerprint: what the journal compared.
        progress: told files whose checksum is taken, and in all.

    Raises:
        DiskError: the folder can't be written.
    """
    assert source.folder is not None
    try:
        for path in copied_files(source.folder):
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise DiskError(f"Can't write to {folder}: {error.strerror}.") from None
    raw = read_config_json(source.folder)
    config = artefact_config(raw, source.config, job.scheme)
    _write_json(folder / CONFIG_NAME, config)
    if job.scheme.layout is Layout.GPTQ:
        _write_json(folder / GPTQ_CONFIG_NAME, config["quantization_config"])
    rows = [row for unit in units for row in unit.report]
    mixed = mixed_machines(units)
    card = model_card(
        job.target.name,
        job.scheme,
        job.plan,
        source,
        calibration,
        job.options,
        rows,
        [*mixed, *notes_by_layers(units)],
    )
    _write_text(folder / CARD_NAME, card)
    notes = [f"model.layers.{unit.layer}: {note}" for unit in units for note in unit.notes]
    _write_json(folder / REPORT_NAME, report(job, source, calibration, rows, [*mixed, *notes], run))
    left_out = (MANIFEST_NAME, *NOT_CHECKSUMMED)
    paths = [path for path in sorted(folder.iterdir()) if path.name not in left_out]
    outputs = checksums(paths, progress, f"checksums of {job.target.name}")
    _write_json(
        folder / MANIFEST_NAME, manifest(job, source, calibration, inputs, outputs, fingerprint)
    )


def checksums(
    paths: Sequence[Path], progress: ProgressFn = silent, label: str = "checksums"
) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of files by their names, as a manifest lists them."""
    listed = {}
    for done, path in enumerate(paths):
        progress(done, len(paths), label)
        listed[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    progress(len(paths), len(paths), label)
    return listed


def artefact_config(raw: Mapping[str, Any], config: Qwen3Config, scheme: Scheme) -> dict[str, Any]:
    """``config.json`` in the spelling that transformers 4.x and 5.x both read.

    That is 4.x's: ``torch_dtype``, flat ``rope_theta``, ``rope_scaling``, ``num_experts``.
    """
    out = dict(raw)
    rope = dict(out.pop("rope_parameters", None) or {})
    theta = rope.pop("rope_theta", None)
    if theta is not None:
        out["rope_theta"] = theta
    if rope and rope.get("rope_type", "default") != "default":
        out["rope_scaling"] = rope
    if "num_local_experts" in out:
        out.setdefault("num_experts", out.pop("num_local_experts"))
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(scheme.name, config.dtype)
    out.pop("dtype", None)
    out["torch_dtype"] = dtype
    out.pop("quantization_config", None)
    quantization = quantization_config(scheme, config)
    if quantization is not None:
        out["quantization_config"] = quantization
    return out


def report(
    job: FolderJob,
    source: ModelSource,
    calibration: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """What was done, tensor by tensor: bits, error, seconds; and calibration tokens per expert."""
    return {
        "model": source.title,
        "scheme": job.scheme.name,
        "description": job.scheme.describe(),
        "bits_per_weight": round(job.plan.bits_per_weight, 4),
        "tensor_bytes": job.plan.tensor_bytes,
        "calibration": dict(calibration),
        "run": dict(run),
        "notes": list(notes),
        "expert_tokens": expert_tokens(rows),
        "linears": [dict(row) for row in rows],
    }


def expert_tokens(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Calibration tokens routed to each expert, by layer and expert; empty for a dense model."""
    tokens: dict[str, dict[str, int]] = {}
    for row in rows:
        head, found, tail = row["name"].partition(".mlp.experts.")
        if found and "tokens" in row:
            layer, expert = head.removeprefix("model.layers."), tail.split(".")[0]
            tokens.setdefault(layer, {})[expert] = row["tokens"]
    return tokens


def manifest(
    job: FolderJob,
    source: ModelSource,
    calibration: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Mapping[str, Any]],
    fingerprint: Mapping[str, str],
) -> dict[str, Any]:
    """sha256 of everything that went in and came out, and what verifies it."""
    return {
        "manifest": MANIFEST_FORMAT,
        "qwen3q": __version__,
        "name": job.target.name,
        "scheme": asdict(job.scheme),
        "options": dict(job.options),
        "source": {
            "title": source.title,
            "repo": source.repo,
            "revision": source.revision,
            "dtypes": _short_dtypes(job.dtypes),
            "files": dict(inputs),
        },
        "calibration": dict(calibration),
        "fingerprint": dict(fingerprint),
        "outputs": dict(outputs),
        "not_checksummed": list(NOT_CHECKSUMMED),
    }


def _short_dtypes(dtypes: Mapping[str, str]) -> dict[str, str]:
    """Dtypes by tensor name, the most common one under ``*`` alone."""
    common = Counter(dtypes.values()).most_common(1)[0][0]
    return {"*": common} | {name: dtype for name, dtype in dtypes.items() if dtype != common}


def is_published(job: FolderJob, fingerprint: Mapping[str, str]) -> bool:
    """Whether the target is there already and was made of exactly this."""
    try:
        stored = json.loads((job.target / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and stored.get("fingerprint") == dict(fingerprint)


def publish(partial: Path, job: FolderJob, *, replace: bool = False) -> None:
    """Makes the finished folder appear under its name in one step, and forgets the journal.

    Raises:
        DiskError: the target can't be written.
    """
    replaced = job.target.with_name(f".{job.target.name}.replaced")
    try:
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(partial)
        if replace and job.target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(job.target, replaced)
        os.rename(partial, job.target)
        sync_folder(job.target.parent)
        job.journal.unlink(missing_ok=True)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise DiskError(f"Can't write {job.target}: {error.strerror}.") from None


def require_target(target: Path, *, replace: bool) -> None:
    """Refuses a folder's place that is taken and may not be given to another.

    Raises:
        UsageError: it exists; or it is to be replaced and is no folder that this package made.
    """
    if not target.exists():
        return
    if not replace:
        raise UsageError(
            f"{target} exists already.",
            "Choose another folder with --out, or add --force to replace it.",
        )
    empty = target.is_dir() and not any(target.iterdir())
    if not empty and not (target / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{target} has no {MANIFEST_NAME}, so qwen3q did not make it: it is not replaced.",
            "Choose another folder with --out, or remove it yourself.",
        )


def require_writable(scheme: Scheme) -> None:
    """Refuses a scheme that can be planned but not made.

    Raises:
        UsageError: it is one.
    """
    if scheme.is_plan_only:
        raise UsageError(
            f"{scheme.name} can be estimated but not written.",
            "Formats that are written: gptq:int4, awq:int4, int8, int4, bnb:nf4, fp8, ...",
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"Can't write {path}: {error.strerror}.") from None
