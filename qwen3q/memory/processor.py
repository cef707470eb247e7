"""A machine's processor and RAM, where llama.cpp runs without a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qwen3q.counts import counted
from qwen3q.errors import UsageError
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.settings import HOST_BANDWIDTH
from qwen3q.process_memory import free_memory
from qwen3q.threads import default_threads

DECODE_SHARE = 0.83
"""Of the rate that all cores read memory with: llama.cpp's decode of seven files of five types,
0.78 to 0.88 (``eval/reports/decode_speed.md``)."""


def processor(free_bytes: int, amount: str = "", bandwidth: float = HOST_BANDWIDTH) -> Gpu:
    """A processor with so much free RAM, as the part that a run is held against.

    Args:
        amount: the memory as it was typed, for the name.
        bandwidth: bytes per second that it decodes with.
    """
    label = amount or f"{free_bytes / (1 << 30):.2f} GiB"
    return Gpu(f"{label} of RAM", "processor", Family.CPU, free_bytes, free_bytes, bandwidth, 0.0)


def this_processor() -> tuple[Gpu, list[str]]:
    """This machine's, its memory's speed measured now, and notes on both.

    Raises:
        UsageError: the system does not tell.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        raise UsageError(
            "How much memory this machine has is not known.",
            "Give it: --gpu none --vram 16GiB.",
        ) from None
    free, whole = free_memory(), f"{total / (1 << 30):.2f} GiB"
    bandwidth, measured = decode_bandwidth()
    part = processor(total if free is None else free, bandwidth=bandwidth)
    if free is None:
        room = f"All {whole} of RAM count; how much is free is not known."
    else:
        room = f"{free / (1 << 30):.2f} of {whole} of RAM are free now."
    return part, [room, measured]


def decode_bandwidth() -> tuple[float, str]:
    """Bytes per second that this machine's cores decode with, and a note of how that was found.

    Takes a fifth of a second or two.
    """
    from qwen3q.memory.bandwidth import read_bandwidth

    threads = default_threads()
    read = read_bandwidth(threads)
    found = DECODE_SHARE * read
    return found, (
        f"Memory was read just now at {read / 1e9:.0f} GB/s by {counted(threads, 'thread')}; "
        f"decoding on the CPU is taken to reach {found / 1e9:.0f} GB/s."
    )


def on_processor(gpus: Sequence[Gpu]) -> bool:
    """Whether a run is on a processor alone."""
    return len(gpus) == 1 and gpus[0].family is Family.CPU
