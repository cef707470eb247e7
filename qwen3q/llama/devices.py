"""The devices that the installed llama.cpp found: processors, and GPUs that can hold layers."""

from __future__ import annotations

import ctypes

from qwen3q.llama.ggml import load_library

GPU_TYPES = (1, 2)
"""A GPU of its own and one in the processor: ``enum ggml_backend_dev_type`` (ggml-backend.h)."""
_CPU_TYPES = (0, 3)
"""The processor, and libraries that work on it."""


def gpu_devices() -> list[str]:
    """Descriptions of the GPUs that its backends found; empty for a build without one.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
    """
    return _described(GPU_TYPES)


def cpu_devices() -> list[str]:
    """Descriptions of the processor and of libraries that work on it, such as a BLAS.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
    """
    return _described(_CPU_TYPES)


def _described(types: tuple[int, ...]) -> list[str]:
    base, ggml = load_library("ggml-base"), load_library("ggml")
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_type.restype = ctypes.c_int
    base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    return [
        base.ggml_backend_dev_description(device).decode("utf-8", "replace")
        for device in devices
        if base.ggml_backend_dev_type(device) in types
    ]
