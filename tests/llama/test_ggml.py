"""ggml's kernels held against gguf-py's dequantizers and numpy's own conversions."""

from __future__ import annotations

import sys

import gguf
import numpy as np
import pytest

from qwen3q.errors import LlamaError, MissingPackageError
from qwen3q.llama import ggml
from qwen3q.plan.gguf_types import GGML_TYPES

# squared error over squared signal that a Gaussian loses, by bits; generous by half
LARGEST_ERROR = {
    "F16": 1e-6, "BF16": 1e-4, "Q8_0": 1e-4, "Q6_K": 5e-4, "Q5_K": 2e-3, "Q5_0": 3e-3,
    "Q5_1": 3e-3, "Q4_K": 8e-3, "Q4_0": 1.2e-2, "Q4_1": 1e-2, "IQ4_NL": 9e-3, "IQ4_XS": 9e-3,
    "MXFP4": 2e-2, "Q3_K": 4e-2, "IQ3_S": 5e-2, "IQ3_XXS": 8e-2, "Q2_K": 0.15, 
}  # fmt: skip


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((8, 512), dtype=np.float32)


@pytest.mark.parametrize("name", LARGEST_ERROR)
def test_gguf_py_reads_back_what_was_quantized(name, weights):
    to = GGML_TYPES[name]
    blocks = ggml.quantize_rows(weights, to, imatrix=np.ones(512, np.float32))
    assert blocks.shape == (8, to.row_bytes(512))
    back = gguf.dequantize(blocks, gguf.GGMLQuantizationType(to.id))
    error = float(((back - weights) ** 2).mean() / (weights**2).mean())
    assert error < LARGEST_ERROR[name]
    assert ggml.is_valid(blocks, to)


def test_rows_are_independent_and_go_where_they_are_told(weights):
    to = GGML_TYPES["Q4_K"]
    out = np.zeros((8, to.row_bytes(512)), np.uint8)
    for row in range(8):
        ggml.quantize_rows(weights[row : row + 1], to, out=out[row : row + 1])
    assert np.array_equal(out, ggml.quantize_rows(weights, to))


def test_the_importance_matrix_moves_error_to_unimportant_columns(weights):
    to = GGML_TYPES["Q4_K"]
    importance = np.full(512, 1e-3, np.float32)
    importance[::8] = 1e3
    back = gguf.dequantize(
        ggml.quantize_rows(weights, to, imatrix=importance), gguf.GGMLQuantizationType(to.id)
    )
    errors = ((back - weights) ** 2).mean(axis=0)
    plain = gguf.dequantize(ggml.quantize_rows(weights, to), gguf.GGMLQuantizationType(to.id))
    assert errors[::8].mean() < 0.6 * ((plain - weights) ** 2).mean(axis=0)[::8].mean()


def test_widening_is_exact():
    bits = np.arange(1 << 16, dtype=np.uint16)
    assert np.array_equal(ggml.bf16_to_f32_rows(bits).view(np.uint32), bits.astype(np.uint32) << 16)
    halves = bits.view(np.float16)
    finite = np.isfinite(halves)
    assert np.array_equal(ggml.f16_to_f32_rows(halves)[finite], halves.astype(np.float32)[finite])


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        (lambda w: w[:, ::2], "Q8_0", "C-contiguous"),
        (lambda w: w.astype(np.float64), "Q8_0", "float32"),
        (lambda w: np.ascontiguousarray(w[:, :100]), "Q4_K", "blocks of 256"),
        (lambda w: w[0], "Q8_0", r"not \[rows, columns\]"),
        (lambda w: w, "IQ2_XS", "importance matrix"),
        (lambda w: w, "I32", "can't quantize to I32"),
    ],
)
def test_what_would_abort_ggml_is_refused(change, to, message, weights):
    with pytest.raises(LlamaError, match=message):
        ggml.quantize_rows(change(weights), GGML_TYPES[to])


def test_wrong_outputs_are_refused(weights):
    to = GGML_TYPES["Q8_0"]
    with pytest.raises(LlamaError, match="output has shape"):
        ggml.quantize_rows(weights, to, out=np.empty((8, 543), np.uint8))
    with pytest.raises(LlamaError, match="importance matrix has shape"):
        ggml.quantize_rows(weights, to, imatrix=np.ones(511, np.float32))


def test_a_nan_block_is_not_valid(weights):
    blocks = ggml.quantize_rows(weights, GGML_TYPES["Q8_0"])
    blocks[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
    assert not ggml.is_valid(blocks, GGML_TYPES["Q8_0"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(ggml.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="llama-cpp-python is not installed") as caught:
        ggml.library_folder()
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("platform", "file"),
    [
        ("linux", "libggml-base.so.0"),
        ("darwin", "libggml-base.dylib"),
        ("win32", "ggml-base.dll"),
    ],
)
def test_library_names_of_the_platforms(platform, file, tmp_path, monkeypatch):
    (tmp_path / file).write_bytes(b"no library")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ggml.os, "add_dll_directory", lambda folder: None, raising=False)
    with pytest.raises(LlamaError, match=f"{file} can't be loaded"):
        ggml.load_library("ggml-base")
