"""llama.cpp's importance matrix: mean squared input per channel of every linear.

A GGUF file in the layout of ``llama-imatrix`` (tools/imatrix): per tensor ``X.in_sum2``
``[experts, in]`` and ``X.counts`` ``[experts, 1]``, float32; or an older ``imatrix.dat``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import CheckpointError, ModelError
from qwen3q.formats.gguf_file import GgufTensor, Value, ValueType, is_gguf, read_header
from qwen3q.formats.imatrix_dat import StoredMatrix, read_dat
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.gguf import gguf_name

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LONGEST_STATED = 127
"""Bytes of a text in ``llama_model_kv_override``."""
_MAKE = "Make one with llama-imatrix, or use --calibration balanced."


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Importance per input channel, and where it came from.

    Attributes:
        values: float32 ``[in]`` by checkpoint tensor name; linears it does not cover are absent.
        label: file or calibration set, for the metadata.
        entries: tensors it holds.
        chunks: text chunks it was made from; None if not known.
        dataset: the text and how much of it was asked for, for the metadata; None if not known.
    """

    values: Mapping[str, NDArray[np.float32]]
    label: str
    entries: int
    chunks: int | None
    dataset: str | None = None

    def metadata(self) -> dict[str, Value]:
        """The keys that ``llama-quantize`` writes beside the weights, without anyone's folders."""
        keys = {"file": Value(ValueType.STRING, self.label)}
        if self.dataset is not None:
            keys["dataset"] = Value(ValueType.STRING, self.dataset)
        keys["entries_count"] = Value(ValueType.U32, self.entries)
        if self.chunks is not None:
            keys["chunks_count"] = Value(ValueType.U32, self.chunks)
        return {f"quantize.imatrix.{key}": value for key, value in keys.items()}


def read_imatrix(path: Path, config: Qwen3Config) -> ImportanceMatrix:
    """Reads an importance matrix for a model of this config.

    An expert that no token reached has a count of 0 and gets importance 1, as in llama.cpp.

    Raises:
        CheckpointError: no importance matrix, or a damaged one.
        ModelError: it was made for another model.
    """
    stored = _read_gguf(path) if is_gguf(path) else read_dat(path, _MAKE)
    values = {}
    for spec in model_tensors(config):
        rows = stored.means.get(gguf_name(spec))
        if rows is None:
            continue
        shape = (1 if spec.expert is None else config.num_experts, spec.shape[-1])
        if rows.shape not in (shape, (prod(shape),)):
            raise ModelError(
                f"{path} has importance of shape {list(rows.shape)} for {gguf_name(spec)}; "
                f"this model's is {list(shape)}.",
                "It was made for another model.",
            )
        values[spec.name] = np.ascontiguousarray(rows.reshape(shape)[spec.expert or 0])
    if not values:
        raise ModelError(
            f"{path} covers no tensor of this model.", "It was made for another model."
        )
    return ImportanceMatrix(
        values, path.name, len(stored.means), stored.chunks or None, _stated(stored.text)
    )


def _stated(text: str) -> str | None:
    """The name of a text without its folder, at most as long as ``llama-quantize`` keeps one."""
    name = re.split(r"[/\\]", text)[-1]
    return name.encode()[:_LONGEST_STATED].decode(errors="ignore") or None


def _read_gguf(path: Path) -> StoredMatrix:
    """Mean squares ``[experts, in]`` by llama.cpp's tensor name, and what they are of."""
    header = read_header(path)
    if header.metadata.get("general.type") != "imatrix":
        raise CheckpointError(f"{path} is no importance matrix.", _MAKE)
    means = {
        name.removesuffix(_SUMS): _means(path, tensor, header.tensors.get(_counts_of(name)))
        for name, tensor in header.tensors.items()
        if name.endswith(_SUMS)
    }
    chunks = header.metadata.get("imatrix.chunk_count", 0)
    texts = header.metadata.get("imatrix.datasets")
    text = texts[0] if isinstance(texts, list) and texts else ""
    return StoredMatrix(
        means, chunks if isinstance(chunks, int) else 0, text if isinstance(text, str) else ""
    )


def _counts_of(name: str) -> str:
    return name.removesuffix(_SUMS) + _COUNTS


def _means(path: Path, sums: GgufTensor, counts: GgufTensor | None) -> NDArray[np.float32]:
    """``[experts, in]``: sums over counts."""
    if counts is None or sums.type != "F32" or counts.type != "F32":
        raise CheckpointError(f"{path}: {sums.name} has no float32 counts beside it.", _MAKE)
    total = _floats(path, sums).reshape(-1, sums.shape[-1])
    count = _floats(path, counts).reshape(-1, 1)
    if len(count) != len(total) or not np.isfinite(total).all():
        raise CheckpointError(f"{path}: {sums.name} is damaged.", _MAKE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.float32(1))


def _floats(path: Path, tensor: GgufTensor) -> NDArray[np.float32]:
    return np.fromfile(path, np.float32, tensor.nbytes // 4, offset=tensor.start)
