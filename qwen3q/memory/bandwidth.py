"""How fast this machine reads its memory, which is what bounds decoding on a processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

_READ_SECONDS = 0.2
_READ_PASSES = 6
"""At least so many passes, and for so long."""
_USUAL_CACHE = 64 << 20
"""Last-level cache where the machine does not say."""


def read_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read memory with: the best of many passes.

    The data is more than the processor's cache holds, and each thread has its own part. Takes a
    fifth of a second or two.
    """
    data = np.ones(2 * last_level_cache() // 8, np.int64)
    parts = np.array_split(data, threads)

    def largest(part: NDArray[np.int64]) -> int:
        return int(part.max())

    times: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        while len(times) < _READ_PASSES or sum(times) < _READ_SECONDS:
            started = perf_counter()
            list(pool.map(largest, parts))
            times.append(perf_counter() - started)
    return data.nbytes / min(times)


@cache
def last_level_cache() -> int:
    """Bytes of the first processor's largest cache (Linux); a usual figure elsewhere."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes, default=_USUAL_CACHE)
