"""What one run takes on one device."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.memory.gpus import MIB, Family, Gpu

_CONTEXT = {
    Family.NVIDIA: (330, 130),
    Family.PASCAL: (250, 130),
    Family.NVIDIA_UNIFIED: (400, 200),
    Family.RADEON: (213, 100),
    Family.INSTINCT: (213, 150),
    Family.STRIX_HALO: (213, 150),
    Family.ARC: (300, 200),
    Family.APPLE: (100, 100),
    Family.CPU: (60, 40),
    Family.UNKNOWN: (330, 130),
}
"""MiB that the driver takes for a program's context, and by how much that varies.

NVIDIA: between memory reported and memory seen free on five cards; ROCm: one machine (213 MiB). On
a processor it is the program and its tokenizer: 39 MiB of llama-tokenize with 151,936 short tokens.
"""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on one device, in the loader's own division.

    Attributes:
        name: as the loader calls it: ``CUDA0``, ``CPU``, ...
        gpu: None for the CPU beside GPUs, and for a GPU of unknown size; of a run on a processor
            alone the processor.
        overhead: what is outside the loader's buffers: the driver's context and scratch memory.
        uncertainty: by how much the total may be off.
    """

    name: str
    gpu: Gpu | None
    weights: int
    kv: int
    compute: int
    overhead: int
    uncertainty: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute + self.overhead

    @property
    def left(self) -> int | None:
        """Bytes that stay free, negative where it does not fit; None where the size is unknown."""
        return None if self.gpu is None else self.gpu.usable_bytes - self.total


def context_bytes(gpu: Gpu | None) -> int:
    """Memory that the driver takes for a program's context."""
    return _CONTEXT[gpu.family if gpu else Family.UNKNOWN][0] * MIB


def context_spread(gpu: Gpu | None) -> int:
    """By how much that varies."""
    return _CONTEXT[gpu.family if gpu else Family.UNKNOWN][1] * MIB
