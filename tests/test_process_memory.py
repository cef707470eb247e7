"""Memory as the system counts it."""

from __future__ import annotations

import pytest

from qwen3q import process_memory

MIB = 1 << 20


def test_freed_room_below_what_is_in_use_goes_back() -> None:
    """Blocks too small for mappings of their own; the last keeps the heap from shrinking."""
    if process_memory._malloc_trim() is None or process_memory.resident_bytes() is None:
        pytest.skip("this system's allocator can't be asked, or its memory not be read")
    blocks = [bytearray(b"x" * 65536) for _ in range(1600)]
    last = blocks.pop()
    full = process_memory.resident_bytes()
    blocks.clear()
    process_memory.give_back_free_memory()
    left = process_memory.resident_bytes()
    assert full is not None
    assert left is not None
    assert full - left > 80 * MIB
    assert len(last) == 65536


def test_the_peak_is_never_below_what_is_resident() -> None:
    resident = process_memory.resident_bytes()
    if resident is None:
        pytest.skip("this system does not say what is resident")
    assert process_memory.peak_since_start() >= resident > MIB
