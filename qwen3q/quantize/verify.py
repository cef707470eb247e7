"""Holds an artefact against its plan, its manifest and its report; needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.reader import Checkpoint, check_all_finite
from qwen3q.checkpoint.shards import DTYPES, INDEX_NAME, lay_out_shards
from qwen3q.checkpoint.writer import file_sha256
from qwen3q.counts import counted
from qwen3q.errors import CheckpointError, Qwen3qError, UsageError
from qwen3q.formats.agreement import disagreement, stored_in_words
from qwen3q.formats.recognise import recognise
from qwen3q.models.config import Qwen3Config, read_config, read_config_json
from qwen3q.models.tensors import model_tensors
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.plan import Plan
from qwen3q.plan.schemes import Layout, Override, Scheme, parse_scheme
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.local_plan import COPIED_NAMES
from qwen3q.quantize.names import (
    CONFIG_NAME,
    GPTQ_CONFIG_NAME,
    MANIFEST_NAME,
    NOT_CHECKSUMMED,
    REPORT_NAME,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        passed: whether it is as it should be.
        detail: what was found, or the first thing that is wrong.
    """

    name: str
    passed: bool
    detail: str


def verify_folder(
    folder: Path, source: Path | None = None, progress: ProgressFn = silent
) -> list[Check]:
    """Checks a folder that qwen3q made: layout, values, tokenizer, plan, report, checksums.

    A folder that another tool made has no manifest; of it, the first three are checked.

    Args:
        source: the folder it was made from, to compare with the manifest's inputs.
        progress: told files and tensors looked at, and in all.

    Raises:
        ModelError: no model folder.
        UsageError: a source for a folder without manifest.
        CheckpointError: a manifest that can't be read.
    """
    config = read_config(folder)
    if source is not None and not (folder / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{folder} has no {MANIFEST_NAME}, so there is nothing to compare --source with.",
            "Leave --source out; layout, values and tokenizer are checked without it.",
        )
    checks = [
        _check("layout", lambda: _layout(folder, config)),
        _check("values", lambda: _values(folder, progress)),
        _check("tokenizer", lambda: _tokenizer(folder)),
    ]
    if not (folder / MANIFEST_NAME).is_file():
        return checks
    manifest = read_manifest(folder)
    checks += [
        _check("plan", lambda: _plan(folder, config, manifest)),
        _check("report", lambda: _report(folder, config, _scheme(manifest))),
        _check("checksums", lambda: _outputs(folder, config, manifest, progress)),
    ]
    if source is not None:
        files = manifest["source"]["files"]
        checks.append(_check("source", lambda: _inputs(source, files, progress)))
    return checks


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact, its parts present and of the right kind.

    Raises:
        CheckpointError: it is broken.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        parts = (manifest["scheme"], manifest["outputs"], manifest["source"]["files"])
        dtypes = manifest["source"]["dtypes"]
        sound = all(isinstance(part, dict) for part in (*parts, dtypes))
        sound = sound and all(dtype in DTYPES for dtype in dtypes.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} is no manifest of qwen3q.")
    return dict(manifest)


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Qwen3qError as error:
        return Check(name, False, error.message)


def _layout(folder: Path, config: Qwen3Config) -> str:
    """Every tensor of the model is stored, in the right shape and the layout of its config."""
    with Checkpoint(folder) as checkpoint:
        found = recognise(config, checkpoint.tensors, str(folder)).values()
    quantization = read_config_json(folder).get("quantization_config")
    against = disagreement(quantization or {}, found)
    if against:
        raise CheckpointError(against)
    return stored_in_words(found)


def _values(folder: Path, progress: ProgressFn) -> str:
    """No float, be it a weight or a scale, is NaN or Inf."""
    with Checkpoint(folder) as checkpoint:
        check_all_finite(checkpoint, progress, "values")
        return f"{counted(len(checkpoint.tensors), 'tensor')}, all finite"


def _tokenizer(folder: Path) -> str:
    """The tokenizer is there and whole: without it no engine serves the weights."""
    found = read_tokenizer(folder)
    return f"{len(found.vocab)} tokens and {len(found.added)} added ones"


def _plan(folder: Path, config: Qwen3Config, manifest: Mapping[str, Any]) -> str:
    """The headers are to the byte what the plan of config and scheme says."""
    plan = _planned(folder, config, manifest)
    for shard in lay_out_shards(plan.tensors):
        path = folder / shard.filename
        if not path.is_file():
            raise CheckpointError(f"{shard.filename} is missing.")
        with path.open("rb") as file:
            header = file.read(len(shard.header))
        if header != shard.header or path.stat().st_size != shard.nbytes:
            raise CheckpointError(f"{shard.filename} does not hold what its plan says.")
    return (
        f"{len(plan.tensors)} tensors, {plan.tensor_bytes:,} bytes, "
        f"{plan.bits_per_weight:.2f} bits per weight"
    )


def _planned(folder: Path, config: Qwen3Config, manifest: Mapping[str, Any]) -> Plan:
    dtypes = dict(manifest["source"]["dtypes"])
    common = dtypes.pop("*", config.dtype)
    by_name = {spec.name: common for spec in model_tensors(config)} | dtypes
    return plan_folder(folder.name, config, _scheme(manifest), dtypes=by_name)


def _report(folder: Path, config: Qwen3Config, scheme: Scheme) -> str:
    """The report has one row per quantized linear, with the bits that were planned."""
    path = folder / REPORT_NAME
    try:
        linears = json.loads(path.read_text(encoding="utf-8"))["linears"]
        rows = {row["name"]: (row["bits"], float(row["error"])) for row in linears}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{REPORT_NAME} is missing or broken.") from None
    planned = {
        spec.name: chosen.bits
        for spec in model_tensors(config)
        if spec.is_linear and (chosen := scheme.at(spec.name)) is not None
    }
    for name in planned.keys() ^ rows.keys():
        what = "does not account for" if name in planned else "has a row that was not planned:"
        raise CheckpointError(f"{REPORT_NAME} {what} {name}.")
    for name, (bits, error) in rows.items():
        if bits != planned[name] or not math.isfinite(error):
            raise CheckpointError(f"{REPORT_NAME}: {name} has {bits} bits, error {error}.")
    return f"{counted(len(rows), 'linear')} accounted for"


def _outputs(
    folder: Path, config: Qwen3Config, manifest: Mapping[str, Any], progress: ProgressFn
) -> str:
    """Every file of the plan is in the manifest's list, and every file of the list as written."""
    listed = manifest["outputs"]
    shards = lay_out_shards(_planned(folder, config, manifest).tensors)
    planned = {CONFIG_NAME, *(shard.filename for shard in shards)}
    planned |= {INDEX_NAME} if len(shards) > 1 else set()
    planned |= {GPTQ_CONFIG_NAME} if _scheme(manifest).layout is Layout.GPTQ else set()
    planned |= manifest["source"]["files"].keys() & set(COPIED_NAMES)
    _require_listed(planned, listed)
    others = {path.name for path in folder.iterdir() if path.is_file()}
    others -= {MANIFEST_NAME, *NOT_CHECKSUMMED, *listed}
    for name in sorted(others):
        if name.endswith(".safetensors"):
            raise CheckpointError(
                f"{name} is not of this model: the manifest does not list it, and engines load "
                "every safetensors file."
            )
    beside = f"; not of the manifest: {', '.join(sorted(others))}" if others else ""
    return _checksums(folder, listed, progress) + beside


def _inputs(source: Path, files: Mapping[str, Any], progress: ProgressFn) -> str:
    """The source's config and weights are in the manifest's list, and all of the list as it was."""
    with Checkpoint(source) as checkpoint:
        _require_listed({CONFIG_NAME, *(path.name for path in checkpoint.paths)}, files)
    return _checksums(source, files, progress)


def _require_listed(names: Iterable[str], listed: Mapping[str, Any]) -> None:
    missing = sorted(set(names) - listed.keys())
    if missing:
        raise CheckpointError(f"The manifest does not list {missing[0]}.")


def _checksums(folder: Path, files: Mapping[str, Any], progress: ProgressFn) -> str:
    """Every file of a manifest's list is there with its bytes."""
    for done, (name, entry) in enumerate(files.items(), 1):
        if Path(name).name != name or not isinstance(entry, dict):
            raise CheckpointError(f"The manifest lists {name!r}, which is no file of the folder.")
        path = folder / name
        if not isfile(path):  # which takes a name that no file can have for a missing one
            raise CheckpointError(f"{name} is missing.")
        if path.stat().st_size != entry.get("bytes"):
            raise CheckpointError(
                f"{name} has {path.stat().st_size} bytes, the manifest says {entry.get('bytes')}."
            )
        if file_sha256(path) != entry.get("sha256"):
            raise CheckpointError(f"{name} is not the file that was written: its sha256 differs.")
        progress(done, len(files), f"checksums of {folder.name}")
    return f"{counted(len(files), 'file')} as they were written"


def _scheme(manifest: Mapping[str, Any]) -> Scheme:
    """The scheme as the manifest spells it out.

    Raises:
        CheckpointError: it is none.
        UsageError: it has numbers that no layout holds.
    """
    raw = manifest["scheme"]
    try:
        return parse_scheme(
            raw["name"],
            bits=raw["bits"],
            group_size=raw["group_size"],
            symmetric=raw["symmetric"],
            overrides=tuple(Override(**override) for override in raw["overrides"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError("The manifest's scheme is broken.") from None
