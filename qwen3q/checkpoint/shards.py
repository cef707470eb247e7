"""Where each tensor lies in the safetensors shards of a folder, known before any data is.

The format: https://github.com/huggingface/safetensors (8 bytes of header length, JSON, data).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen3q.errors import CheckpointError

MAX_SHARD_BYTES = 5_000_000_000
"""Data bytes of a shard, as the Hub's own libraries cut them."""

INDEX_NAME = "model.safetensors.index.json"

DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""safetensors' name and bytes of each dtype, by torch's name."""


class StoredTensor(Protocol):
    """What the layout needs to know of a tensor; a ``PlannedTensor`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file before it is written.

    Attributes:
        filename: ``model.safetensors``, or ``model-00001-of-00003.safetensors``.
        header: the length, the JSON and its padding; data follows.
        offsets: first byte of each tensor in the file, by name, in file order.
        nbytes: of the whole file.
    """

    filename: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def lay_out_shards(
    tensors: Sequence[StoredTensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Shard]:
    """Cuts ``tensors`` into shards in their order, each tensor whole.

    Raises:
        CheckpointError: a name occurs twice.
    """
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"Tensor {twice} would be stored twice.")
    groups: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return [
        _shard(shard_name(number, len(groups)), group) for number, group in enumerate(groups, 1)
    ]


def shard_name(number: int, count: int) -> str:
    """Name of shard ``number`` (from 1) of ``count``."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def index_json(shards: Sequence[Shard]) -> bytes:
    """The bytes of ``model.safetensors.index.json``."""
    data = sum(shard.nbytes - len(shard.header) for shard in shards)
    places = {name: shard.filename for shard in shards for name in shard.offsets}
    index = {"metadata": {"total_size": data}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(index, indent=2) + "\n").encode()


def layout_overhead_bytes(shards: Sequence[Shard]) -> int:
    """Bytes of headers and, where there are several shards, of the index."""
    headers = sum(len(shard.header) for shard in shards)
    return headers + (len(index_json(shards)) if len(shards) > 1 else 0)


def _shard(filename: str, tensors: Iterable[StoredTensor]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=_alignment_order):
        start, end = end, end + tensor.nbytes
        starts[tensor.name] = start
        header[tensor.name] = {
            "dtype": DTYPES[tensor.type][0],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    offsets = {name: len(head) + start for name, start in starts.items()}
    return Shard(filename, head, offsets, len(head) + end)


def _alignment_order(tensor: StoredTensor) -> tuple[int, int]:
    """The format allows no gaps: tensors that would misalign the next come last, widest first."""
    return (0, 0) if tensor.nbytes % 8 == 0 else (1, -DTYPES[tensor.type][1])
