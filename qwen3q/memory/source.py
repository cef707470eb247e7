"""The model of an estimate: a release, a local file or folder (its header), or a Hub id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3q.errors import CheckpointError, SourceError, UsageError
from qwen3q.memory.weights import (
    FORMATS,
    Weights,
    planned_weights,
    release_weights,
    sum_tensors,
)
from qwen3q.models.catalog import Release, find_release
from qwen3q.models.config import Qwen3Config, parse_config
from qwen3q.plan.gguf_types import FILE_TYPES, GGUF_PREFIX

_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8"}


@dataclass(frozen=True, slots=True)
class Model:
    """What to estimate.

    Attributes:
        name: what to type for it.
        stored: weights as they lie on disk, where the model is a file or folder that is not float.
        source: what commands download or quantize: a Hub id or a path.
    """

    name: str
    title: str
    config: Qwen3Config
    source: str
    release: Release | None = None
    stored: Weights | None = None

    def weights(self, fmt: str) -> Weights:
        """Its weights in one format.

        Raises:
            UsageError: an unknown format, or one that the model does not fit.
        """
        if self.release is not None:
            return release_weights(self.release, canonical_format(fmt))
        return planned_weights(self.title, self.config, canonical_format(fmt))

    def formats(self) -> list[str]:
        """What to list: what it is stored as, or everything it can become."""
        if self.stored is not None:
            return [self.stored.format]
        return [fmt for fmt in FORMATS if self.config.is_moe or fmt != "gguf:MXFP4_MOE"]


def find_model(name: str) -> Model:
    """The model called ``name``: alias, Hub id, folder, GGUF or safetensors file, or ``demo``.

    Raises:
        Qwen3qError: nothing there, or what is there is broken or no Qwen3.
    """
    path = Path(name)
    release = None if path.exists() else find_release(name)
    if release is not None:
        return Model(release.name, release.title, release.config, _repo(name, release), release)
    if path.is_file():
        return _gguf(path) if path.suffix == ".gguf" else _safetensors_file(path)
    if path.suffix in (".gguf", ".safetensors") and not path.exists():
        raise SourceError(
            f"There is no file {name}.", "Give a file that is there, or an alias such as qwen3-8b."
        )
    from qwen3q.models.source import describe

    found = describe(name)
    if found.folder is not None:
        return folder_model(found.folder, found.title, name)
    return Model(name, found.title, found.config, found.repo or name, found.release)


def folder_model(folder: Path, title: str, source: str) -> Model:
    """A folder of safetensors in any format, from its headers."""
    from qwen3q.checkpoint.reader import Checkpoint
    from qwen3q.models.config import read_config_json

    raw = read_config_json(folder)
    config = parse_config(raw, str(folder / "config.json"))
    quantization = raw.get("quantization_config")
    with Checkpoint(folder) as checkpoint:
        if quantization is None:
            return Model(source, title, config, source)
        sizes = {name: info.nbytes for name, info in checkpoint.tensors.items()}
        dtypes = {info.dtype for info in checkpoint.tensors.values()}
        nbytes = sum(path.stat().st_size for path in checkpoint.paths)
    fmt = _folder_format(quantization, dtypes)
    stored = sum_tensors(fmt, sizes.items(), config, nbytes)
    return Model(source, title, config, source, stored=stored)


def split_format(name: str) -> tuple[str, str | None]:
    """``qwen3-8b:Q4_K_M`` is a model and ``gguf:Q4_K_M``; None where a name holds no file type."""
    model, _, kind = name.rpartition(":")
    if not model or kind.upper() not in FILE_TYPES or Path(name).exists():
        return name, None
    return model, GGUF_PREFIX + kind.upper()


def canonical_format(fmt: str) -> str:
    """``fmt`` in the spelling of ``FORMATS``.

    Raises:
        UsageError: no such format; suggests the nearest.
    """
    if fmt in FORMATS:
        return fmt
    from qwen3q.plan.targets import parse_target, target_name

    return target_name(parse_target(fmt))


def _repo(name: str, release: Release) -> str:
    from qwen3q.models.catalog import release_repo

    return release_repo(name) or release.repos[0]


def _gguf(path: Path) -> Model:
    from qwen3q.formats.gguf_model import read_gguf_model
    from qwen3q.plan.gguf_types import gguf_format

    found = read_gguf_model(path)
    metadata = found.headers[0].metadata
    sizes = {name: tensor.nbytes for name, (_, tensor) in found.tensors.items()}
    fmt = gguf_format(metadata.get("general.file_type"))
    nbytes = sum(header.file_bytes for header in found.headers)
    stored = sum_tensors(fmt, sizes.items(), found.config, nbytes)
    title = str(metadata.get("general.name", path.stem))
    return Model(str(path), title, found.config, str(path), stored=stored)


def _safetensors_file(path: Path) -> Model:
    from qwen3q.checkpoint.safetensors import read_header
    from qwen3q.models.config import read_config_json

    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path} is neither a .gguf nor a .safetensors file.",
            "Give a GGUF file, a safetensors file or a model folder.",
        )
    if not (path.parent / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json beside it, which says the model's shape.",
            "Put the model's config.json into the same folder.",
        )
    raw = read_config_json(path.parent)
    config = parse_config(raw, str(path.parent / "config.json"))
    header = read_header(path)
    sizes = {info.name: info.nbytes for info in header.tensors.values()}
    if not any("embed_tokens" in name for name in sizes):
        raise CheckpointError(
            f"{path} is one shard of several.", f"Give the folder: {path.parent}."
        )
    fmt = _folder_format(
        raw.get("quantization_config"), {info.dtype for info in header.tensors.values()}
    )
    stored = sum_tensors(fmt, sizes.items(), config, path.stat().st_size)
    return Model(str(path), path.parent.name, config, str(path.parent), stored=stored)


def _folder_format(quantization: Mapping[str, Any] | None, dtypes: set[str]) -> str:
    """The name of a folder's format out of its ``quantization_config``, or its dtype."""
    if quantization is None:
        floats = [name for dtype, name in _DTYPES.items() if dtype in dtypes]
        return floats[0] if floats else "mixed"
    method = str(quantization.get("quant_method"))
    bits = quantization.get("bits")
    if method in ("gptq", "awq"):
        return f"{method}:int{bits}"
    if method == "bitsandbytes":
        return "bnb:nf4" if quantization.get("load_in_4bit") else "bnb:int8"
    if method == "compressed-tensors":
        return {
            "pack-quantized": "int4", "int-quantized": "int8", "nvfp4-pack-quantized": "nvfp4",
            "float-quantized": "fp8",
        }.get(str(quantization.get("format")), "compressed-tensors")  # fmt: skip
    return method
