"""PyTorch's caching allocator: what it counts beyond the bytes that were asked for.

Source: ``c10/cuda/CUDACachingAllocator.cpp`` (kSmallSize, kMinLargeAlloc, kRoundLarge,
``should_split``): a tensor of 10 MiB or more gets a segment rounded up to 2 MiB, a smaller one of
more than 1 MiB is cut from a segment of 20 MiB, and a rest of at most 1 MiB is not split off.
"""

from __future__ import annotations

from qwen3q.memory.gpus import MIB

CODE_BYTES = {
    "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "gptq:int8": 1.0, "bnb:int8": 1.0,
    "gptq:int4": 0.5, "awq:int4": 0.5, "int4": 0.5, "nvfp4": 0.5, "bnb:nf4": 0.5,
}  # fmt: skip
"""Bytes per weight of the tensor that holds a linear's codes, by format."""

_SMALL = MIB
_LARGE = 10 * MIB
_SEGMENT = 20 * MIB
_ROUND = 2 * MIB


def rounding_waste(nbytes: int) -> int:
    """Bytes counted beyond ``nbytes`` for one of many tensors of this size."""
    if nbytes <= _SMALL:
        return 0
    if nbytes < _LARGE:
        count, rest = divmod(_SEGMENT, nbytes)
        return rest // count if rest <= _SMALL else 0
    rest = -nbytes % _ROUND
    return rest if rest <= _SMALL else 0
