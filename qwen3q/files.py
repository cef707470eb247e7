"""Writing so that a target is whole or absent: room checked first, written beside, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from qwen3q.errors import DiskError, UsageError

SPARE_BYTES = 64 << 20
"""Room a disk keeps beyond what is written."""


def partial_path(target: Path) -> Path:
    """Where ``target`` is written until it is complete."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Within, ``target`` is written at the path that is given; afterwards it is there, whole.

    After a failure nothing of it is left, and what was there before stays.

    Raises:
        DiskError: it can't be written.
    """
    partial = partial_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except OSError as error:
        raise DiskError(f"Can't write {target}: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A UTF-8 file that a user names, newlines as they are.

    Raises:
        UsageError: no such file, or no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"Can't read {path}: {error.strerror}.", "Give a text file.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text.", "Give a text file.") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is whole or absent.

    Raises:
        DiskError: it can't be written.
    """
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


@contextmanager
def sole_writer(target: Path, *, wait: bool = False, doing: str = "") -> Iterator[None]:
    """Within, no other process that asks for ``target`` in this way writes it.

    The lock is the system's on a file beside it, so it ends with the process, however that ends.
    A parent folder that is made for it and stays empty is removed again. Systems without
    ``flock`` (Windows) do not hold others off.

    Args:
        wait: until the other process is done, instead of refusing.
        doing: what the other process does, for the message; "writing ``target``" if empty.

    Raises:
        DiskError: another process writes it, or the folder can't be written.
    """
    lock = target.with_name(f".{target.name}.lock")
    made = not target.parent.exists()
    try:
        file = _locked(lock, wait)
    except BlockingIOError:
        raise DiskError(
            f"Another run is {doing or f'writing {target}'}.",
            "Wait until it ends, or choose another --out.",
        ) from None
    except OSError as error:
        raise DiskError(f"Can't write {target}: {error.strerror}.") from None
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):
                target.parent.rmdir()


def _locked(path: Path, wait: bool) -> IO[bytes]:
    """Opens and locks ``path``; once more if its last owner removed it in between, and perhaps the
    folder that it had made."""
    while True:
        make_folder(path.parent)
        file = path.open("ab")
        try:
            _lock(file, wait)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[bytes], wait: bool) -> None:
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def require_file_target(path: Path) -> None:
    """Checks before the work that a file can be put at ``path``; its folder is made.

    Raises:
        DiskError: it is a folder, or its folder can't be written.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise DiskError(f"{path} is a folder.", "Give the name of a file.")
    if not os.access(path.parent, os.W_OK):
        raise DiskError(f"Can't write to {path.parent}: permission denied.")


def make_folder(folder: Path) -> None:
    """Makes ``folder`` and those above it where they are not there.

    Raises:
        DiskError: it can't be made, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DiskError(
            f"Can't write to {folder}: it is a file, or lies below one.", "Choose another --out."
        ) from None
    except OSError as error:
        raise DiskError(f"Can't write to {folder}: {error.strerror}.") from None


def require_free_space(folder: Path, nbytes: int) -> None:
    """Checks before the start that ``nbytes`` fit on the disk of ``folder``, which is created.

    Raises:
        DiskError: it can't be created, can't be written, or has too little room.
    """
    make_folder(folder)
    try:
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
        raise DiskError(
            f"Can't reserve {nbytes / 1e9:.2f} GB for {file.name}: {error.strerror}.",
            "Free some room, or choose another folder with --out.",
        ) from None
