"""A machine's processor and RAM, where llama.cpp runs without a GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qwen3q.errors import UsageError
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.speed import HOST_BANDWIDTH
from qwen3q.process_memory import free_memory


def processor(free_bytes: int, amount: str = "") -> Gpu:
    """A processor with so much free RAM, as the part that a run is held against.

    Args:
        amount: the memory as it was typed, for the name.
    """
    label = amount or f"{free_bytes / (1 << 30):.2f} GiB"
    return Gpu(
        f"{label} of RAM", "processor", Family.CPU, free_bytes, free_bytes, HOST_BANDWIDTH, 0.0
    )


def this_processor() -> tuple[Gpu, str]:
    """This machine's, and a note on how much of its RAM is free.

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
    if free is None:
        return processor(total), f"All {whole} of RAM count; how much is free is not known."
    return processor(free), f"{free / (1 << 30):.2f} of {whole} of RAM are free now."


def on_processor(gpus: Sequence[Gpu]) -> bool:
    """Whether a run is on a processor alone."""
    return len(gpus) == 1 and gpus[0].family is Family.CPU
