"""ggml's quantization kernels on numpy arrays, from the libraries inside llama_cpp.

Only ``libggml-base`` is loaded: neither llama_cpp's Python nor any backend. ctypes releases the
GIL in every call, so threads that work on different rows run in parallel.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import LlamaError, MissingPackageError
from qwen3q.plan.gguf_types import GgmlType
from qwen3q.threads import calm_openmp

_T = TypeVar("_T", bound=np.generic)

_NOT_QUANTIZABLE = frozenset({"I8", "I16", "I32", "I64", "F64"})


def library_folder() -> Path:
    """The folder of the shared libraries that the llama_cpp package carries.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
    """
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise MissingPackageError(
            "llama-cpp-python is not installed, and everything GGUF needs it.",
            "pip install 'qwen3q[llama]'",
        )
    return Path(spec.origin).parent / "lib"


def load_library(name: str) -> ctypes.CDLL:
    """Loads ``libNAME`` out of the llama_cpp package, under this platform's file name.

    Raises:
        MissingPackageError: llama-cpp-python is not installed, or carries no such library.
    """
    calm_openmp()
    folder = library_folder()
    if sys.platform == "win32":
        names = [f"{name}.dll", f"lib{name}.dll"]
        if folder.is_dir():
            os.add_dll_directory(str(folder))
    elif sys.platform == "darwin":
        names = [f"lib{name}.dylib", f"lib{name}.so"]
    else:
        # libllama asks for the .0 name; a wheel holds copies, and two copies would share no state
        names = [f"lib{name}.so.0", f"lib{name}.so"]
    for path in (folder / file for file in names):
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as error:
                raise LlamaError(f"{path} can't be loaded: {error}.") from None
    raise MissingPackageError(
        f"The installed llama-cpp-python has no library {name} in {folder}.",
        "pip install --force-reinstall 'llama-cpp-python==0.3.36'",
    )


def quantize_rows(
    weights: NDArray[np.float32],
    to: GgmlType,
    *,
    imatrix: NDArray[np.float32] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Quantizes each row by itself with ``ggml_quantize_chunk``.

    Args:
        weights: float32 ``[rows, columns]``, C-contiguous, finite.
        to: the type; its block size must divide ``columns``.
        imatrix: mean squared activation per column, float32 ``[columns]``.
        out: where to write, uint8 ``[rows, row_bytes]``, C-contiguous; allocated if None.

    Returns:
        ``out``, the blocks of each row.

    Raises:
        LlamaError: shapes, types or memory layout that ggml would abort the process for.
    """
    base = _base()
    _check("weights", weights, np.dtype(np.float32))
    if weights.ndim != 2:
        raise LlamaError(f"Rows to quantize have shape {list(weights.shape)}, not [rows, columns].")
    rows, columns = weights.shape
    if to.name in _NOT_QUANTIZABLE:
        raise LlamaError(f"ggml can't quantize to {to.name}.")
    if columns == 0 or columns % to.block_size:
        raise LlamaError(
            f"Rows of {columns} weights don't divide into {to.name} blocks of {to.block_size}."
        )
    if imatrix is not None:
        _check("importance matrix", imatrix, np.dtype(np.float32))
        if imatrix.shape != (columns,):
            raise LlamaError(
                f"The importance matrix has shape {list(imatrix.shape)}; rows have {columns}."
            )
    elif base.ggml_quantize_requires_imatrix(to.id):
        raise LlamaError(f"{to.name} can't be written without an importance matrix.")
    shape = (rows, to.row_bytes(columns))
    out = _output(out, shape, np.dtype(np.uint8))
    if rows:
        importance = None if imatrix is None else imatrix.ctypes.data
        written = base.ggml_quantize_chunk(
            to.id, weights.ctypes.data, out.ctypes.data, 0, rows, columns, importance
        )
        if written != out.nbytes:
            raise LlamaError(f"ggml wrote {written} bytes of {to.name}, not {out.nbytes}.")
    return out


def bf16_to_f32_rows(
    source: NDArray[np.uint16], *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Widens bfloat16, given as its 16 bits in uint16 of any shape, to float32 of that shape."""
    return _widen(_base().ggml_bf16_to_fp32_row, source, np.dtype(np.uint16), out)


def f16_to_f32_rows(
    source: NDArray[np.float16], *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Widens float16 of any shape to float32 of that shape."""
    return _widen(_base().ggml_fp16_to_fp32_row, source, np.dtype(np.float16), out)


def is_valid(data: NDArray[np.uint8], of: GgmlType) -> bool:
    """Whether ``data`` holds whole ``of`` blocks without a NaN or Inf (``ggml_validate_row_data``).

    ggml names the first bad block on stderr.
    """
    _check("data", data, np.dtype(np.uint8))
    return bool(_base().ggml_validate_row_data(of.id, data.ctypes.data, data.nbytes))


@cache
def _base() -> ctypes.CDLL:
    base = load_library("ggml-base")
    pointer, int64, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, int64, int64, int64, pointer
    ]  # fmt: skip
    base.ggml_quantize_chunk.restype = size
    base.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    base.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
    base.ggml_validate_row_data.restype = ctypes.c_bool
    for widen in (base.ggml_bf16_to_fp32_row, base.ggml_fp16_to_fp32_row):
        widen.argtypes = [pointer, pointer, int64]
        widen.restype = None
    return base


def _widen(
    function: ctypes._NamedFuncPointer,
    source: NDArray[np.uint16] | NDArray[np.float16],
    dtype: np.dtype[np.uint16] | np.dtype[np.float16],
    out: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    _check("source", source, dtype)
    out = _output(out, source.shape, np.dtype(np.float32))
    function(source.ctypes.data, out.ctypes.data, source.size)
    return out


def _output(out: NDArray[_T] | None, shape: tuple[int, ...], dtype: np.dtype[_T]) -> NDArray[_T]:
    if out is None:
        return np.empty(shape, dtype)
    _check("out", out, dtype)
    if out.shape != shape or not out.flags.writeable:
        raise LlamaError(f"The output has shape {list(out.shape)}, not a writable {list(shape)}.")
    return out


def _check(name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise LlamaError(f"ggml needs {name} as C-contiguous {dtype}; it is {array.dtype}.")
