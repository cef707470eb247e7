"""What this process has in memory, as the system counts it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

_M_ARENA_MAX = -8
"""glibc's malloc.h."""


def reset_peak() -> None:
    """Starts the kernel's record of the largest resident set anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int | None:
    """The largest resident set since ``reset_peak``, or the start; None where not known (Linux)."""
    return _kilobytes("/proc/self/status", "VmHWM:")


def peak_since_start() -> int:
    """The largest resident set of a process that never reset it; 0 where not known.

    ``ru_maxrss`` comes second: on Linux it starts at the size of whoever started the process.
    """
    peak = peak_bytes()
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def resident_bytes() -> int | None:
    """The resident set now; None where not known."""
    return _kilobytes("/proc/self/status", "VmRSS:")


def free_memory() -> int | None:
    """Bytes that programs can still allocate without swapping; None where not known."""
    return _kilobytes("/proc/meminfo", "MemAvailable:")


def give_back_free_memory() -> None:
    """Returns to the system what the allocator keeps of freed memory, where it can (glibc).

    Threads that worked side by side each leave freed room behind that no other one uses.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def share_heap() -> None:
    """All threads take memory from one heap from now on, where that can be chosen (glibc).

    Otherwise each has its own, and room that one has freed is not there for the others: a tenth
    of a calibration's peak, which takes no longer so.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@cache
def _glibc(name: str) -> ctypes._NamedFuncPointer | None:
    try:
        function: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function


def _kilobytes(file: str, key: str) -> int | None:
    """A line ``KEY 123 kB`` in bytes."""
    try:
        for line in Path(file).read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return None
