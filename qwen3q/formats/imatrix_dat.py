"""Importance matrices as llama.cpp wrote them before they were GGUF files: ``imatrix.dat``.

Layout (``save_imatrix_legacy`` in llama.cpp's tools/imatrix), little-endian: int32 number of
entries; of each an int32 length and the tensor's name, int32 calls, int32 number of values, and as
many float32 of mean square times calls, experts one after the other; then, if it is not from the
first months, int32 chunks, an int32 length and the name of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import UNREADABLE, CheckpointError

_MOST_TEXT = 1 << 16


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """What a file of either kind holds.

    Attributes:
        means: float32 ``[experts * in]`` or ``[experts, in]`` by llama.cpp's tensor name.
        chunks: text chunks it was made from; 0 if the file does not tell.
        text: the name of their text; empty if the file does not tell.
    """

    means: dict[str, NDArray[np.float32]]
    chunks: int
    text: str


def read_dat(path: Path, hint: str) -> StoredMatrix:
    """Reads a file that is no GGUF; every count is held against what is left of it.

    Args:
        hint: the next step where it is none of these either.

    Raises:
        CheckpointError: it can't be read, or is none.
    """
    try:
        with path.open("rb") as file:
            return _parse(file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"Can't read {path}: {error.strerror}.", UNREADABLE) from None
    except ValueError:
        raise CheckpointError(f"{path} is no importance matrix.", hint) from None


def _parse(file: BinaryIO, size: int) -> StoredMatrix:
    """
    Raises:
        ValueError: it does not hold what it says.
    """

    def part(nbytes: int) -> bytes:
        if not 0 < nbytes <= size - file.tell():
            raise ValueError
        return file.read(nbytes)

    def integer() -> int:
        return int.from_bytes(part(4), "little", signed=True)

    entries = integer()
    if entries < 1:
        raise ValueError
    means: dict[str, NDArray[np.float32]] = {}
    for _ in range(entries):
        name = part(integer()).decode()
        calls, count = integer(), integer()
        values = np.frombuffer(part(4 * count), "<f4")
        if name in means or not np.isfinite(values).all():
            raise ValueError
        means[name] = np.divide(values, max(calls, 1), dtype=np.float32)
    chunks = max(0, integer()) if file.tell() < size else 0
    return StoredMatrix(means, chunks, _text(file.read(_MOST_TEXT)))


def _text(rest: bytes) -> str:
    """The text's name after its length; empty where there is no whole one."""
    name = rest[4 : 4 + int.from_bytes(rest[:4], "little")]
    whole = len(rest) >= 4 and len(name) == int.from_bytes(rest[:4], "little")
    return name.split(b"\0")[0].decode(errors="replace") if whole else ""
