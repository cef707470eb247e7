"""What is measured: a model folder in any format, a GGUF file or an endpoint, by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import UsageError
from qwen3q.evaluate.endpoint_http import is_url
from qwen3q.formats.gguf_file import GgufHeader, read_header, split_paths
from qwen3q.inspection import describe_format
from qwen3q.models.config import parse_config, read_config, read_config_json
from qwen3q.models.source import resolve
from qwen3q.models.tensors import parameter_count
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.plan.gguf_types import gguf_format
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.names import REPORT_NAME

if TYPE_CHECKING:
    from qwen3q.evaluate.endpoint import Endpoint, EndpointOptions

_UNUSED_TOKEN = 5
"""``LLAMA_TOKEN_TYPE_UNUSED``: fills the vocabulary up to the embedding's rows."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """One model on disk, or behind an endpoint.

    Attributes:
        name: how reports call it.
        path: a ``.gguf`` file (the first, if split) or a folder; of an endpoint, the reference's,
            which holds its tokenizer and its config.
        format: ``gguf:Q4_K_M``, ``gptq-int4`` or what its config says; ``endpoint:SERVER``.
        file_bytes: bytes of its weight files; None for an endpoint.
        parameters: weights it stands for; a tied embedding counts once.
        tokenizer: sha256 over vocabulary and merges, the same for a folder and its GGUF.
        report: the quantizer's ``report.json``; empty if there is none.
        tensor_bytes: of its weight files, what is tensors.
    """

    name: str
    path: Path
    format: str
    file_bytes: int | None
    parameters: int
    tokenizer: str
    report: Mapping[str, Any]
    endpoint: Endpoint | None = None
    tensor_bytes: int = 0

    @property
    def is_gguf(self) -> bool:
        """Whether ``path`` is a GGUF file."""
        return self.path.is_file()

    @property
    def bits_per_weight(self) -> float | None:
        """Of the tensors, scales included, as ``quantize`` has it; None for an endpoint."""
        return None if self.file_bytes is None else 8 * self.tensor_bytes / self.parameters


def find_artefact(name: str, *, offline: bool = False, progress: ProgressFn = silent) -> Artefact:
    """The artefact ``name``: a folder, a ``.gguf`` file, ``MODEL:TYPE``, or a model's name.

    Raises:
        SourceError: nothing by that name.
        UsageError: an endpoint, whose files are not known.
        Qwen3qError: what is there is broken or no Qwen3.
    """
    if is_url(name):
        raise UsageError(
            f"{name} is an endpoint; this takes a model's files.",
            "Endpoints go into `qwen3q eval URL... --reference MODEL` and `eval endpoint URL`.",
        )
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and not path.is_dir():
        return _gguf(path)
    if ":" in name and not path.is_dir():
        from qwen3q.quantize.local_gguf import local_gguf

        return _gguf(local_gguf(name, offline=offline, progress=progress))
    source = resolve(name, offline=offline, progress=progress)
    assert source.folder is not None
    return _folder(source.folder, source.title)


def endpoint_artefact(
    url: str, reference: Artefact, options: EndpointOptions | None = None
) -> Artefact:
    """The model served at ``url``, asked in the tokens of ``reference``.

    Raises:
        ModelError: it is served with another tokenizer.
        UsageError: no URL, several models and none named, or the named one is not there.
        EndpointError: the server can't be reached or is no OpenAI-compatible one.
    """
    from qwen3q.evaluate.endpoint import PROBE_TEXT, check_tokenizer, find_endpoint, probe
    from qwen3q.evaluate.tokens import open_codec

    tokens = open_codec(reference).encode(PROBE_TEXT, parse_special=True).tolist()
    found = find_endpoint(url, options)
    checked = check_tokenizer(found, PROBE_TEXT, tokens)
    scorer, generation = probe(found, PROBE_TEXT, tokens)
    found = replace(found, scorer=scorer, generation=generation, tokenizer_checked=checked)
    return replace(
        reference,
        name=found.name,
        format=f"endpoint:{found.server}",
        file_bytes=None,
        report={},
        endpoint=found,
    )


def vocab_size(artefact: Artefact) -> int:
    """Rows of the vocabulary, padding included: the width of its logits."""
    if artefact.is_gguf:
        return len(read_header(artefact.path).metadata.get("tokenizer.ggml.tokens", []))
    return read_config(artefact.path).vocab_size


def file_facts(artefact: Artefact) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of the files that a model is: weights and config."""
    if artefact.is_gguf:
        paths = split_paths(artefact.path)
    else:
        paths = [*sorted(artefact.path.glob("*.safetensors")), artefact.path / "config.json"]
    stats = [(path.name, path.stat()) for path in paths]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


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
    return Artefact(
        name=path.stem,
        path=path,
        format=gguf_format(headers[0].metadata.get("general.file_type")),
        file_bytes=sum(header.file_bytes for header in headers),
        tensor_bytes=sum(t.nbytes for header in headers for t in header.tensors.values()),
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
        tensor_bytes = sum(info.nbytes for info in checkpoint.tensors.values())
    return Artefact(
        name=title,
        path=folder,
        format=str(report.get("scheme", stated)),
        file_bytes=nbytes,
        tensor_bytes=tensor_bytes,
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
