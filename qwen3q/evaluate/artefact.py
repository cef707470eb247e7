"""What is measured: a model folder in any format or a GGUF file, found by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.formats.gguf_file import GgufHeader, read_header, split_paths
from qwen3q.inspection import describe_format
from qwen3q.models.config import parse_config, read_config_json
from qwen3q.models.source import resolve
from qwen3q.models.tensors import parameter_count
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.local_gguf import local_gguf
from qwen3q.quantize.names import REPORT_NAME

_UNUSED_TOKEN = 5
"""``LLAMA_TOKEN_TYPE_UNUSED``: fills the vocabulary up to the embedding's rows."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One model on disk.

    Attributes:
        name: how reports call it.
        path: a ``.gguf`` file (the first, if split) or a folder.
        format: ``gguf:Q4_K_M``, ``gptq-int4`` or what its config says.
        file_bytes: bytes of its weight files.
        parameters: weights it stands for; a tied embedding counts once.
        tokenizer: sha256 over vocabulary and merges, the same for a folder and its GGUF.
        report: the quantizer's ``report.json``; empty if there is none.
    """

    name: str
    path: Path
    format: str
    file_bytes: int
    parameters: int
    tokenizer: str
    report: Mapping[str, Any]

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()

    @property
    def bits_per_weight(self) -> float:
        """Bits of file per weight, metadata and scales included."""
        return 8 * self.file_bytes / self.parameters


def find_artefact(name: str, *, offline: bool = False, progress: ProgressFn = silent) -> Artefact:
    """The artefact ``name``: a folder, a ``.gguf`` file, ``MODEL:TYPE``, or a model's name.

    Raises:
        SourceError: nothing by that name.
        Qwen3qError: what is there is broken or no Qwen3.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and (path.suffix == ".gguf" or ":" in name):
        return _gguf(local_gguf(name, offline=offline, progress=progress))
    source = resolve(name, offline=offline, progress=progress)
    assert source.folder is not None
    return _folder(source.folder, source.title)


def tokenizer_hash(tokens: Mapping[int, str], merges: list[str]) -> str:
    """sha256 that two tokenizers share exactly if vocabulary, ids and merges are the same."""
    rows = sorted(tokens.items())
    return sha256(json.dumps([rows, merges], ensure_ascii=False).encode()).hexdigest()


def folder_tokenizer_hash(folder: Path) -> str:
    """``tokenizer_hash`` of a model folder."""
    files = read_tokenizer(folder)
    tokens = {index: text for text, index in files.vocab.items()}
    tokens |= {token.id: token.content for token in files.added}
    return tokenizer_hash(tokens, list(files.merges))


def gguf_tokenizer_hash(header: GgufHeader) -> str:
    """``tokenizer_hash`` of a GGUF file; tokens that only fill up the vocabulary don't count."""
    texts = header.metadata.get("tokenizer.ggml.tokens", [])
    types = header.metadata.get("tokenizer.ggml.token_type", [1] * len(texts))
    tokens = {
        index: text
        for index, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind != _UNUSED_TOKEN
    }
    return tokenizer_hash(tokens, list(header.metadata.get("tokenizer.ggml.merges", [])))


def _gguf(path: Path) -> Artefact:
    headers = [read_header(part) for part in split_paths(path)]
    types = {kind.id: kind.name for kind in FILE_TYPES.values()}
    file_type = types.get(headers[0].metadata.get("general.file_type", -1), "unknown")
    return Artefact(
        name=path.stem,
        path=path,
        format=f"gguf:{file_type}",
        file_bytes=sum(header.file_bytes for header in headers),
        parameters=sum(prod(t.shape) for header in headers for t in header.tensors.values()),
        tokenizer=gguf_tokenizer_hash(headers[0]),
        report={},
    )


def _folder(folder: Path, title: str) -> Artefact:
    raw = read_config_json(folder)
    config = parse_config(raw, str(folder / "config.json"))
    report = _quantizer_report(folder)
    quantization = raw.get("quantization_config")
    stated = describe_format(quantization) if quantization else config.dtype
    with Checkpoint(folder) as checkpoint:
        nbytes = sum(path.stat().st_size for path in checkpoint.paths)
    return Artefact(
        name=title,
        path=folder,
        format=str(report.get("scheme", stated)),
        file_bytes=nbytes,
        parameters=parameter_count(config),
        tokenizer=folder_tokenizer_hash(folder),
        report=report,
    )


def _quantizer_report(folder: Path) -> Mapping[str, Any]:
    """``report.json`` as the folder quantizer writes it; empty if absent or something else."""
    try:
        raw = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) and isinstance(raw.get("linears"), list) else {}
