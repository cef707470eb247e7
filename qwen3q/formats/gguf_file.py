"""The GGUF container: header in (validated) and header out.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

from qwen3q.errors import REFETCH, UNREADABLE, CheckpointError
from qwen3q.plan.gguf_types import GGML_TYPES_BY_ID

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
_NEWER = "Update qwen3q if the file is newer; else fetch it again."
_NO_GGUF = (
    "Fetch it again, or make one from the float model: qwen3q quantize MODEL --to gguf:Q4_K_M."
)
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class ValueType(IntEnum):
    """Type of a metadata value."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


_FORMATS = {
    ValueType.U8: "B",
    ValueType.I8: "b",
    ValueType.U16: "H",
    ValueType.I16: "h",
    ValueType.U32: "I",
    ValueType.I32: "i",
    ValueType.F32: "f",
    ValueType.BOOL: "?",
    ValueType.U64: "Q",
    ValueType.I64: "q",
    ValueType.F64: "d",
}


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value to write; ``items`` is the element type when ``type`` is ARRAY."""

    type: ValueType
    value: Any
    items: ValueType | None = None


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file.

    Attributes:
        type: GGML's name, such as ``Q6_K``.
        shape: row-major, the reverse of the file's ``ne``.
        start: byte offset in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file declares."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int
    file_bytes: int


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do.

    Raises:
        CheckpointError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointError(f"Can't read {path}: {error.strerror}.", UNREADABLE) from None


def read_header(path: Path) -> GgufHeader:
    """Reads and validates the header of one GGUF file.

    Raises:
        CheckpointError: not a GGUF, truncated, or a count, offset or type that does not fit.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24 or file.read(4) != MAGIC:
                raise CheckpointError(f"{path} is no GGUF file.", _NO_GGUF)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(path, data, 4).header()
    except OSError as error:
        raise CheckpointError(f"Can't read {path}: {error.strerror}.", UNREADABLE) from None


def split_paths(path: Path) -> list[Path]:
    """All parts of the GGUF that ``path`` is part of, in order; just ``path`` if it is whole.

    Raises:
        CheckpointError: names the first part that is missing.
    """
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None or not 0 < int(match[2]) <= int(match[3]):
        return [path]
    stem, _, count = match.groups()
    parts = [path.with_name(f"{stem}-{i + 1:05d}-of-{count}.gguf") for i in range(int(count))]
    for part in parts:
        if not part.is_file():
            raise CheckpointError(
                f"{path} is part of a split file; {part.name} is missing.",
                "Fetch that part into the same folder.",
            )
    return parts


class _Cursor:
    """Walks a mapped header; every length is checked against the bytes that are left."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path = path
        self.data = data
        self.position = position

    def header(self) -> GgufHeader:
        version = self.number("I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path} is GGUF version {version}; 2 and 3 are read.", _NEWER
            )
        n_tensors, n_values = self.number("Q"), self.number("Q")
        self.room(n_values, 13, "metadata values")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.string()
            if key in metadata:
                raise CheckpointError(f"{self.path} has the metadata key {key} twice.", REFETCH)
            metadata[key] = self.value(self.value_type())
        self.room(n_tensors, 24, "tensors")
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}.", REFETCH)
        entries = [self.tensor() for _ in range(n_tensors)]
        data_start = -(-self.position // alignment) * alignment
        tensors = {}
        for tensor in entries:
            if tensor.name in tensors:
                raise CheckpointError(f"{self.path} has the tensor {tensor.name} twice.", REFETCH)
            start = data_start + tensor.start
            if tensor.start % alignment or start + tensor.nbytes > len(self.data):
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {tensor.name} ends at byte "
                    f"{start + tensor.nbytes} of {len(self.data)}.",
                    REFETCH,
                )
            tensors[tensor.name] = GgufTensor(
                tensor.name, tensor.type, tensor.shape, start, tensor.nbytes
            )
        return GgufHeader(self.path, metadata, tensors, data_start, len(self.data))

    def room(self, count: int, each: int, what: str) -> None:
        if count * each > len(self.data) - self.position:
            raise CheckpointError(f"{self.path} is truncated: it claims {count} {what}.", REFETCH)

    def number(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self.room(1, size, "more bytes")
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += size
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.room(length, 1, "bytes of text")
        raw = self.data[self.position : self.position + length]
        self.position += length
        return raw.decode("utf-8", errors="replace")

    def strings(self, count: int) -> list[str]:
        """``string`` so many times; a vocabulary has hundreds of thousands."""
        self.room(count, 8, "strings")
        found: list[str] = []
        data, start, size = self.data, self.position, len(self.data)
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            end = start + 8 + (read_length(data, start)[0] if start + 8 <= size else 0)
            if end > size:
                raise CheckpointError(
                    f"{self.path} is truncated: it claims {count} strings.", REFETCH
                )
            found.append(data[start + 8 : end].decode("utf-8", "replace"))
            start = end
        self.position = start
        return found

    def value_type(self) -> ValueType:
        kind = self.number("I")
        try:
            return ValueType(kind)
        except ValueError:
            raise CheckpointError(f"{self.path}: unknown metadata type {kind}.", _NEWER) from None

    def value(self, kind: ValueType) -> Any:
        if kind is ValueType.STRING:
            return self.string()
        if kind is not ValueType.ARRAY:
            return self.number(_FORMATS[kind])
        items, count = self.value_type(), self.number("Q")
        if items is ValueType.ARRAY:
            raise CheckpointError(f"{self.path}: nested metadata arrays are not read.", _NEWER)
        if items is ValueType.STRING:
            return self.strings(count)
        code = _FORMATS[items]
        self.room(count, struct.calcsize("<" + code), "numbers")
        values = struct.unpack_from(f"<{count}{code}", self.data, self.position)
        self.position += count * struct.calcsize("<" + code)
        return list(values)

    def tensor(self) -> GgufTensor:
        name = self.string()
        dimensions = self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise CheckpointError(
                f"{self.path}: tensor {name} has {dimensions} dimensions.", REFETCH
            )
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in GGML_TYPES_BY_ID:
            raise CheckpointError(f"{self.path}: tensor {name} has unknown type {kind}.", _NEWER)
        ggml = GGML_TYPES_BY_ID[kind]
        if shape[-1] % ggml.block_size:
            raise CheckpointError(
                f"{self.path}: rows of {shape[-1]} do not fit {ggml.name}'s blocks ({name}).",
                REFETCH,
            )
        return GgufTensor(
            name, ggml.name, shape, offset, prod(shape[:-1]) * ggml.row_bytes(shape[-1])
        )


def encode_metadata(metadata: Mapping[str, Value]) -> bytes:
    """The key-value section, in the order of ``metadata``."""
    return b"".join(_text(key) + _typed(value) for key, value in metadata.items())


def encode_header(
    metadata: bytes, n_values: int, tensors: Iterable[tuple[str, int, Sequence[int], int]]
) -> bytes:
    """A whole header, padded to where the data begins.

    Args:
        metadata: from ``encode_metadata``.
        tensors: name, GGML type number, row-major shape, offset from the data's start.
    """
    entries = [
        _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)
        for name, kind, shape, offset in tensors
    ]
    head = MAGIC + struct.pack("<IQQ", VERSION, len(entries), n_values)
    header = head + metadata + b"".join(entries)
    return header + bytes(-len(header) % DEFAULT_ALIGNMENT)


def _text(text: str) -> bytes:
    raw = text.encode("utf-8")
    return len(raw).to_bytes(8, "little") + raw


def _typed(value: Value) -> bytes:
    head = struct.pack("<I", value.type)
    if value.type is ValueType.STRING:
        return head + _text(value.value)
    if value.type is not ValueType.ARRAY:
        return head + struct.pack("<" + _FORMATS[value.type], value.value)
    assert value.items is not None
    head += struct.pack("<IQ", value.items, len(value.value))
    if value.items is ValueType.STRING:
        return head + b"".join(map(_text, value.value))
    return head + struct.pack(f"<{len(value.value)}{_FORMATS[value.items]}", *value.value)
