"""Hidden states of all calibration rows, in host memory, or in files once memory is full."""

from __future__ import annotations

import shutil
import tempfile
from math import prod
from pathlib import Path

import torch

from qwen3q.errors import DiskError

_SPARE_DISK = 1 << 30


class Activations:
    """``[rows, length, width]``, written and read by slices of rows."""

    def __init__(self, store: ActivationStore, data: torch.Tensor, path: Path | None) -> None:
        self._store = store
        self._data = data
        self._path = path

    def read(self, rows: slice, device: str | torch.device = "cpu") -> torch.Tensor:
        """Some rows, on ``device``; on the CPU a view."""
        return self._data[rows].to(device)

    def gather(self, tokens: torch.Tensor, device: str | torch.device = "cpu") -> torch.Tensor:
        """``[tokens, width]`` by positions among all tokens, on ``device``."""
        return self._data.flatten(0, 1)[tokens].to(device)

    def write(self, rows: slice, value: torch.Tensor) -> None:
        """Replaces some rows."""
        self._data[rows] = value.to("cpu")

    def take(self, other: Activations) -> None:
        """Holds what ``other`` held, which is freed."""
        self._data, other._data = other._data, self._data
        self._path, other._path = other._path, self._path
        other.free()

    def free(self) -> None:
        """Gives the room back; nothing can be read afterwards."""
        self._store.release(self._data, self._path)
        self._data = torch.empty(0)


class ActivationStore:
    """Hands out activations: in memory up to a budget, beyond it in files of a private folder.

    Memory that was given back is handed out again. Use as a context manager; its files are gone
    at the end.
    """

    def __init__(self, rows: int, length: int, memory_bytes: int, folder: Path | None) -> None:
        self.rows = rows
        self.length = length
        self._free_bytes = memory_bytes
        self._spare: list[torch.Tensor] = []
        self._parent = folder
        self._folder: Path | None = None

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._spare.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def new(self, width: int, dtype: torch.dtype = torch.float32) -> Activations:
        """Room for ``[rows, length, width]``.

        Raises:
            DiskError: memory is full and the disk is too.
        """
        shape = (self.rows, self.length, width)
        for index, spare in enumerate(self._spare):
            if tuple(spare.shape) == shape and spare.dtype == dtype:
                return Activations(self, self._spare.pop(index), None)
        nbytes = prod(shape) * dtype.itemsize
        while self._spare and nbytes > self._free_bytes:
            self._free_bytes += self._spare.pop(0).nbytes
        if nbytes <= self._free_bytes:
            self._free_bytes -= nbytes
            return Activations(self, torch.empty(shape, dtype=dtype), None)
        path = self._new_file(nbytes)
        data = torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype)
        return Activations(self, data.view(shape), path)

    def release(self, data: torch.Tensor, path: Path | None) -> None:
        """Called by ``Activations.free``."""
        if path is None:
            self._spare.append(data)
        else:
            path.unlink(missing_ok=True)

    def _new_file(self, nbytes: int) -> Path:
        parent = self._parent or Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="activations-", dir=parent))
        free = shutil.disk_usage(parent).free
        if nbytes + _SPARE_DISK > free:
            raise DiskError(
                f"{parent} has {free / 1e9:.1f} GB free; calibration needs "
                f"{(nbytes + _SPARE_DISK) / 1e9:.1f} GB there for activations.",
                "Use fewer or shorter calibration samples, or another work folder.",
            )
        handle, name = tempfile.mkstemp(suffix=".raw", dir=self._folder)
        with open(handle, "wb") as file:
            file.truncate(nbytes)
        return Path(name)
