"""Shards written in place: their layout is known first, so tensors may come in any order.

What is written and synced stays; a run that was killed writes the rest into the same files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from qwen3q.checkpoint.shards import INDEX_NAME, Shard, index_json
from qwen3q.closing import Closing
from qwen3q.errors import CheckpointError, DiskError
from qwen3q.files import reserve

HASH_BLOCK = 16 << 20


class ShardWriter(Closing):
    """The safetensors files of one folder, open for writing at each tensor's place."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        """Creates the shards at full size with their headers; keeps those that already fit.

        Raises:
            DiskError: the folder can't be written or the disk is full.
        """
        self._places: dict[str, tuple[int, int]] = {}
        self._files: list[int] = []
        self._touched: set[int] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if len(shards) > 1:
                (folder / INDEX_NAME).write_bytes(index_json(shards))
            for shard in shards:
                file = _open_shard(folder / shard.filename, shard)
                self._files.append(file)
                self._places |= {name: (file, start) for name, start in shard.offsets.items()}
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise DiskError(f"Can't write to {folder}: {error.strerror}.") from None
            raise

    def write(self, name: str, data: memoryview) -> str:
        """Writes one tensor's bytes at their place.

        Returns:
            sha256 of the bytes, in hexadecimal.

        Raises:
            CheckpointError: the layout has no such tensor.
            DiskError: the disk refused.
        """
        if name not in self._places:
            raise CheckpointError(f"Tensor {name} is not in the plan of this folder.")
        file, start = self._places[name]
        digest = hashlib.sha256(data)
        try:
            while data.nbytes:
                written = os.pwrite(file, data, start)
                data, start = data[written:], start + written
        except OSError as error:
            raise DiskError(f"Can't write tensor {name}: {error.strerror}.") from None
        self._touched.add(file)
        return digest.hexdigest()

    def sync(self) -> None:
        """Returns when everything written so far is on the disk itself."""
        try:
            for file in self._touched:
                os.fsync(file)
        except OSError as error:
            raise DiskError(f"Can't write to the disk: {error.strerror}.") from None
        self._touched.clear()

    def close(self) -> None:
        for file in self._files:
            os.close(file)
        self._files.clear()


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names of a folder's files as durable as their contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_shard(path: Path, shard: Shard) -> int:
    """A descriptor of the shard at full size; the header goes in last, so it marks a whole file."""
    with path.open("a+b") as file:
        if os.fstat(file.fileno()).st_size == shard.nbytes:
            file.seek(0)
            if file.read(len(shard.header)) == shard.header:
                return os.open(path, os.O_RDWR)
    with path.open("wb") as file:
        reserve(file, shard.nbytes)
        file.write(shard.header)
        file.flush()
        os.fsync(file.fileno())
    return os.open(path, os.O_RDWR)
