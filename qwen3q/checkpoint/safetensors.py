"""The safetensors header, read and validated before anything is allocated for its contents.

Format: 8 bytes little-endian header length, a JSON object, then the data
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qwen3q.errors import REFETCH, UNREADABLE, CheckpointError

DTYPE_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies in its file.

    Attributes:
        dtype: safetensors' name, such as ``BF16``.
        start: byte offset in the file.
        nbytes: bytes of its data.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one safetensors file declares; tensors in the order of their data."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Reads and validates the header of a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, too long, or its header does not describe
            exactly the bytes that follow (counts, offsets, overlaps, gaps, sizes).
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is truncated: {size} bytes do not hold its header.", REFETCH
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path} claims a header of {length} bytes; "
                    f"safetensors allows {MAX_HEADER_BYTES}.",
                    REFETCH,
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"Can't read {path}: {error.strerror}.", UNREADABLE) from None
    entries = _parse(raw, path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is no object.", REFETCH)
    data_start = 8 + length
    tensors = [_entry(name, value, path, data_start) for name, value in entries.items()]
    tensors.sort(key=lambda info: (info.start, info.nbytes))
    _check_layout(tensors, path, data_start, size)
    return Header({info.name: info for info in tensors}, metadata, data_start)


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise CheckpointError(f"{path}: its header names a key twice.", REFETCH)
        return keys

    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path} is no safetensors file: its header is not JSON.", REFETCH
        ) from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path} is no safetensors file: its header is no object.", REFETCH)
    return entries


def _entry(name: str, value: Any, path: Path, data_start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{path}: tensor {name} lacks dtype, shape or data_offsets.",
            REFETCH,
        ) from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: tensor {name} has unknown dtype {dtype!r}.", REFETCH)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_count, shape)):
        raise CheckpointError(f"{path}: tensor {name} has shape {shape!r}.", REFETCH)
    if not _count(begin) or not _count(end) or begin > end:
        raise CheckpointError(f"{path}: tensor {name} has offsets {begin!r} to {end!r}.", REFETCH)
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: tensor {name} spans {end - begin} bytes, "
            f"but {dtype} {shape} takes {expected}.",
            REFETCH,
        )
    return TensorInfo(name, path, dtype, tuple(shape), data_start + begin, end - begin)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_layout(tensors: list[TensorInfo], path: Path, data_start: int, size: int) -> None:
    position = data_start
    for info in tensors:
        if info.start < position:
            raise CheckpointError(
                f"{path}: tensor {info.name} overlaps the one before it.", REFETCH
            )
        if info.start > position:
            raise CheckpointError(f"{path}: there is a gap before tensor {info.name}.", REFETCH)
        position = info.start + info.nbytes
    if position > size:
        raise CheckpointError(
            f"{path} is truncated: it has {size} bytes, its header describes {position}.", REFETCH
        )
    if position < size:
        raise CheckpointError(
            f"{path} has {size - position} bytes that its header does not describe.",
            REFETCH,
        )
