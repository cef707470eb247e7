"""Writing so that a target is whole or absent: room checked first, written beside, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import IO

from qwen3q.errors import DiskError

SPARE_BYTES = 64 << 20
"""Room a disk keeps beyond what is written."""


def partial_path(target: Path) -> Path:
    """Where ``target`` is written until it is complete."""
    return target.with_name(f".{target.name}.partial")


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is whole or absent.

    Raises:
        DiskError: it can't be written.
    """
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DiskError(f"Can't write {path}: {error.strerror}.") from None


def require_free_space(folder: Path, nbytes: int) -> None:
    """Checks before the start that ``nbytes`` fit on the disk of ``folder``, which is created.

    Raises:
        DiskError: it can't be created, can't be written, or has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(f"Can't write to {folder}: {error.strerror}.") from None
    if not os.access(folder, os.W_OK):
        raise DiskError(f"Can't write to {folder}: permission denied.")
    if free < nbytes + SPARE_BYTES:
        wanted = (nbytes + SPARE_BYTES) / 1e9
        raise DiskError(
            f"{folder} has {free / 1e9:.2f} GB free; this needs {wanted:.2f} GB.",
            "Free some room, or choose another folder with --out.",
        )


def reserve(file: IO[bytes], nbytes: int) -> None:
    """Gives the file its full size on disk, so that running out of room shows now.

    Raises:
        DiskError: the disk is full.
    """
    try:
        if hasattr(os, "posix_fallocate") and nbytes:
            os.posix_fallocate(file.fileno(), 0, nbytes)
        else:
            file.truncate(nbytes)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            file.truncate(nbytes)
            return
        raise DiskError(f"Can't reserve {nbytes / 1e9:.2f} GB: {error.strerror}.") from None


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
