"""Memory as the system counts it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwen3q import process_memory

MIB = 1 << 20
TWO_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from qwen3q.process_memory import resident_bytes, share_heap

def room(kept=[]):
    blocks = [bytearray(b"x" * 65536) for _ in range(1600)]
    kept.append(blocks.pop())

share_heap()
with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
    first.submit(room).result()
    before = resident_bytes()
    second.submit(room).result()
    print(resident_bytes() - before)
"""


def test_freed_room_below_what_is_in_use_goes_back() -> None:
    """Blocks too small for mappings of their own; the last keeps the heap from shrinking."""
    if process_memory._glibc("malloc_trim") is None or process_memory.resident_bytes() is None:
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


def test_threads_that_share_a_heap_use_what_others_freed() -> None:
    """In a process of its own: the first thread still runs when the second asks for memory."""
    if process_memory._glibc("mallopt") is None or process_memory.resident_bytes() is None:
        pytest.skip("this system's allocator can't be told, or its memory not be read")
    made = subprocess.run([sys.executable, "-c", TWO_THREADS], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert int(made.stdout) < 20 * MIB


def test_the_peak_is_never_below_what_is_resident() -> None:
    resident = process_memory.resident_bytes()
    if resident is None:
        pytest.skip("this system does not say what is resident")
    assert process_memory.peak_since_start() >= resident > MIB
