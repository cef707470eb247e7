"""A folder of safetensors, one file or many shards, read one tensor at a time.

Files are memory-mapped; ``release`` gives a tensor's pages back, so that a pass over a model
larger than memory holds only the tensor at hand.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qwen3q.checkpoint.safetensors import TensorInfo, read_header
from qwen3q.closing import Closing
from qwen3q.errors import REFETCH_MODEL, UNREADABLE, CheckpointError
from qwen3q.progress import ProgressFn, silent

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_CHECKED_AT_ONCE = 1 << 20
"""Values whose finiteness is looked at together: what that takes stays small and in cache."""
_MAPPED_AT_ONCE = 1 << 24
"""Values after which a file's pages are given back while a whole model is looked at."""
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")

STORAGE_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "BOOL": np.bool_,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
}
"""numpy's dtype per safetensors dtype; bf16 and fp8 come as their bits."""

_NOT_FINITE = {"BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
"""The bits that NaN and Inf have set, and no other value has all of."""


class Checkpoint(Closing):
    """All tensors of a model folder.

    Attributes:
        folder: where it lies.
        tensors: every tensor by name.
    """

    def __init__(self, folder: Path) -> None:
        """Opens ``folder`` and validates every shard's header; reads no weight.

        Raises:
            CheckpointError: no safetensors, a broken or unsafe index, or a broken shard.
        """
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path, names in _shards(folder).items():
            header = read_header(path)
            for name in names if names is not None else header.tensors:
                if name not in header.tensors:
                    raise CheckpointError(
                        f"{folder / INDEX_NAME} puts {name} into {path.name}, which lacks it."
                    )
                self.tensors[name] = header.tensors[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors, sorted."""
        return sorted({info.path for info in self.tensors.values()})

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as a read-only view of its file, in its storage dtype (bf16 as uint16).

        Raises:
            CheckpointError: no such tensor, or its file can't be read any more.
        """
        info = self._info(name)
        data = np.frombuffer(
            self._map(info.path),
            dtype=STORAGE_DTYPES[info.dtype],
            count=info.nbytes // np.dtype(STORAGE_DTYPES[info.dtype]).itemsize,
            offset=info.start,
        )
        return data.reshape(info.shape)

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's pages back to the system; views of it stay valid."""
        info = self._info(name)
        if not hasattr(mmap, "MADV_DONTNEED") or info.path not in self._maps:
            return
        page = mmap.PAGESIZE
        start = -(-info.start // page) * page
        length = (info.start + info.nbytes - start) // page * page
        if length > 0:
            self._maps[info.path].madvise(mmap.MADV_DONTNEED, start, length)

    def close(self) -> None:
        """Unmaps the files whose views are all gone."""
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:
                continue
        self._maps.clear()

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder} has no tensor {name}.") from None

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise CheckpointError(f"Can't read {path}: {error.strerror}.", UNREADABLE) from None
        return self._maps[path]


def check_all_finite(
    checkpoint: Checkpoint, progress: ProgressFn = silent, label: str = "checking weights"
) -> None:
    """Refuses NaN and Inf in any tensor of a model; holds little of it in memory.

    Raises:
        CheckpointError: names the tensor and its file.
    """
    total = len(checkpoint.tensors)
    for done, (name, info) in enumerate(checkpoint.tensors.items(), 1):
        flat = checkpoint.array(name).reshape(-1)
        for start in range(0, flat.size, _MAPPED_AT_ONCE):
            check_finite(name, flat[start : start + _MAPPED_AT_ONCE], info.dtype, info.path)
            checkpoint.release(name)
        progress(done, total, label)


def check_finite(
    name: str, values: np.ndarray[Any, Any], dtype: str, path: Path | None = None
) -> None:
    """Refuses NaN and Inf.

    Args:
        values: any part of the tensor, in its storage dtype.
        dtype: safetensors' name of it; integer dtypes always pass.
        path: the file that holds it, for the message.

    Raises:
        CheckpointError: names the tensor.
    """
    flat = values.reshape(-1)
    parts = (flat[i : i + _CHECKED_AT_ONCE] for i in range(0, flat.size, _CHECKED_AT_ONCE))
    if dtype in _NOT_FINITE:
        bits = _NOT_FINITE[dtype]
        finite = not any(((part & bits) == bits).any() for part in parts)
    elif dtype in ("F16", "F32", "F64"):
        finite = all(np.isfinite(part).all() for part in parts)
    else:
        finite = True
    if not finite:
        raise CheckpointError(
            f"Tensor {name} holds NaN or Inf.",
            f"Fetch {path.name if path else 'its file'} again and compare its checksum; if that is "
            "the publisher's, the model itself is broken.",
        )


def _shards(folder: Path) -> dict[Path, list[str] | None]:
    """The files of a folder, and for each the tensors the index wants from it (None: all)."""
    if (folder / INDEX_NAME).is_file():
        return dict(_indexed(folder))
    if (folder / SINGLE_NAME).is_file():
        return {folder / SINGLE_NAME: None}
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if len(found) == 1:
        return {found[0]: None}
    if found:
        raise CheckpointError(
            f"{folder} has {len(found)} safetensors files and no {INDEX_NAME}.",
            REFETCH_MODEL,
        )
    for pattern in PICKLE_PATTERNS:
        for path in folder.glob(pattern):
            raise CheckpointError(
                f"{path} is a pickle, which can run code when read; it is refused.",
                "Use the safetensors version of this model.",
            )
    raise CheckpointError(
        f"{folder} holds no safetensors file.",
        "Its weights are missing: fetch the model again, with model*.safetensors.",
    )


def _indexed(folder: Path) -> Iterable[tuple[Path, list[str] | None]]:
    index = folder / INDEX_NAME
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = list(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{index} is no safetensors index: it lacks weight_map.",
            REFETCH_MODEL,
        ) from None
    shards: dict[str, list[str]] = {}
    for tensor, shard in pairs:
        _check_shard_name(shard, index)
        shards.setdefault(shard, []).append(tensor)
    for shard, names in sorted(shards.items()):
        path = folder / shard
        if not path.is_file():
            raise CheckpointError(
                f"{index} names {shard}, which is missing.",
                "The download is incomplete; run it again and it continues.",
            )
        yield path, names


def _check_shard_name(shard: Any, index: Path) -> None:
    """A shard lies in the folder itself: no separators, no parent, no drive."""
    if (
        not isinstance(shard, str)
        or not shard.endswith(".safetensors")
        or any(c in shard for c in "/\\:\0")
    ):
        raise CheckpointError(
            f"{index} names the shard {shard!r}, which is no safetensors file of its own folder.",
            "A path in an index can reach files outside the model; it is refused.",
        )
