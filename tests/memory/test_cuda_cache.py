"""The caching allocator's rounding, against the rules of CUDACachingAllocator.cpp."""

from __future__ import annotations

import pytest

from qwen3q.memory.cuda_cache import rounding_waste
from qwen3q.memory.gpus import MIB


@pytest.mark.parametrize(
    ("size", "waste"),
    [
        (MIB, 0),  # small pool
        (2 * MIB, 0),  # ten to a segment of 20 MiB
        (3 * MIB, 0),  # six to a segment, the rest of 2 MiB stays usable
        (3 * MIB // 2, MIB // 2 // 13),  # thirteen, and half a MiB is not split off
        (48 * MIB, 0),
        (95 * MIB, MIB),  # rounded up to 96
        (int(47.5 * MIB), MIB // 2),
        (int(12.5 * MIB), 0),  # rounded up to 14, and 1.5 MiB stay usable
    ],
)
def test_rounding(size: int, waste: int) -> None:
    assert rounding_waste(size) == waste
