"""llama.cpp's own account of a context's memory: weights, cache and compute by device.

``llama_get_memory_breakdown`` (llama-ext.h) is C++ and returns a ``std::map`` from buffer type to
three sizes. It is found by its mangled name and its red-black tree is walked as libstdc++ lays it
out, so on Linux alone; elsewhere the answer is empty.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from qwen3q.llama.capi import lib
from qwen3q.llama.devices import GPU_TYPES
from qwen3q.llama.ggml import load_library

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"


@dataclass(frozen=True, slots=True)
class DeviceBuffers:
    """Bytes on one device. The host's buffer of logits is not among them.

    Attributes:
        device: as llama.cpp calls it, such as ``CUDA0``; ``CPU`` for all memory of the host.
        weights: each counted once.
        repeated: pages of the file with weights that llama.cpp computes with in another order, from
            a copy, as it does on many processors. The system may drop these pages.
    """

    device: str
    weights: int
    kv: int
    compute: int
    repeated: int = 0


def memory_breakdown(context: int) -> list[DeviceBuffers]:
    """What ``context`` (a ``llama_context *``) and its model take, the CPU last.

    Empty where this build does not say.
    """
    found: dict[str, list[int]] = {}
    copied = False
    for buffer_type, *sizes in buffers_by_type(context):
        device = _device(buffer_type)
        copied |= device == "CPU" and sizes[0] > 0 and not _is_host(buffer_type)
        sums = found.setdefault(device, [0, 0, 0])
        for part, size in enumerate(sizes):
            sums[part] += size
    order = sorted(found, key=lambda name: (name == "CPU", name))
    buffers = [DeviceBuffers(name, *found[name]) for name in order]
    if not copied or len(buffers) > 1:
        return buffers
    once = int(lib.llama_model_size(lib.llama_get_model(context)))
    return [replace(buffers[0], weights=once, repeated=buffers[0].weights - once)]


def buffers_by_type(context: int) -> Iterator[tuple[int, int, int, int]]:
    """Every ``ggml_backend_buffer_type_t`` of ``context``; its bytes of weights, KV, compute."""
    function = _function()
    if function is None:
        return
    result = (ctypes.c_uint64 * 6)()
    function(ctypes.byref(result), context)
    yield from _in_order(result[2])


def _in_order(node: int) -> Iterator[tuple[int, int, int, int]]:
    if not node:
        return
    # node: colour, parent, left, right, then the key and three sizes
    _, _, left, right, key, *sizes = (ctypes.c_uint64 * 8).from_address(node)
    yield from _in_order(left)
    yield (key, sizes[0], sizes[1], sizes[2])
    yield from _in_order(right)


def _device(buffer_type: int) -> str:
    base = _base()
    device = base.ggml_backend_buft_get_device(buffer_type)
    if not device or _is_host(buffer_type):
        return "CPU"
    if base.ggml_backend_dev_type(device) not in GPU_TYPES:
        return "CPU"
    return str(base.ggml_backend_dev_name(device).decode("utf-8", "replace"))


def _is_host(buffer_type: int) -> bool:
    """Whether plain tensors lie there; repacked ones do not."""
    return bool(_base().ggml_backend_buft_is_host(buffer_type))


@cache
def _function() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    function: ctypes._NamedFuncPointer | None = getattr(lib._lib, _SYMBOL, None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        function.restype = ctypes.c_void_p
    return function


@cache
def _base() -> ctypes.CDLL:
    base = load_library("ggml-base")
    pointer = ctypes.c_void_p
    base.ggml_backend_buft_get_device.argtypes = [pointer]
    base.ggml_backend_buft_get_device.restype = pointer
    base.ggml_backend_buft_is_host.argtypes = [pointer]
    base.ggml_backend_buft_is_host.restype = ctypes.c_bool
    base.ggml_backend_dev_type.argtypes = [pointer]
    base.ggml_backend_dev_type.restype = ctypes.c_int
    base.ggml_backend_dev_name.argtypes = [pointer]
    base.ggml_backend_dev_name.restype = ctypes.c_char_p
    return base
