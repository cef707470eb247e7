"""Rounded inputs against the engines' own kernels: llama.cpp's and bitsandbytes'."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions
from qwen3q.evaluate.input_rounding import (
    bfloat,
    fp8_per_group,
    fp8_per_token,
    ggml_q8,
    ggml_q8_k,
    ggml_rounding,
    half,
    int8_beside_outliers,
    int8_per_token,
)
from qwen3q.evaluate.measure import TextOptions, measure_fidelity

Q8_0_BLOCK = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
Q8_K_BLOCK = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])


@pytest.fixture
def inputs() -> torch.Tensor:
    """float32 ``[6, 512]`` with a few large channels and a row of zeros."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 512, generator=generator)
    x[:, [7, 300]] *= 40
    x[4] = 0
    return x


def quantized_by_ggml(x: torch.Tensor, function: str, block: np.dtype) -> torch.Tensor:
    """What one of llama.cpp's CPU kernels makes of the rows, dequantized."""
    from qwen3q.llama.ggml import load_library

    size = block["qs"].shape[0]
    quantize = getattr(load_library("ggml-cpu"), function)
    quantize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    quantize.restype = None
    source = np.ascontiguousarray(x.numpy())
    out = np.zeros(source.size // size, block)
    quantize(source.ctypes.data, out.ctypes.data, source.size)
    values = out["d"].astype(np.float32)[:, None] * out["qs"].astype(np.float32)
    return torch.from_numpy(values.reshape(x.shape))


@pytest.mark.parametrize(
    ("rounding", "function", "block"),
    [
        (ggml_q8, "quantize_row_q8_0", Q8_0_BLOCK),
        (ggml_q8_k, "quantize_row_q8_K", Q8_K_BLOCK),
    ],
)
def test_ggml_rounding_equals_the_kernels(inputs, rounding, function, block):
    ours, theirs = rounding(inputs), quantized_by_ggml(inputs, function, block)
    step = inputs.unflatten(-1, (-1, block["qs"].shape[0])).abs().amax(-1) / 127
    off = (ours - theirs).abs().unflatten(-1, (-1, block["qs"].shape[0])) / step.clamp(min=1e-9)[
        ..., None
    ]
    # a value halfway between two codes may go either way
    assert (off < 1e-3).float().mean() > 0.999
    assert off.max() < 1.01
    assert torch.equal(ours[4], torch.zeros(512))


def test_blocks_of_256_take_q8_k_and_floats_their_own_type():
    assert ggml_rounding("F32") is None
    assert ggml_rounding("F16") is half
    assert ggml_rounding("BF16") is bfloat
    assert {ggml_rounding(name) for name in ("Q4_0", "Q5_1", "Q8_0", "IQ4_NL")} == {ggml_q8}
    assert {ggml_rounding(name) for name in ("Q2_K", "Q6_K", "IQ2_XXS", "IQ4_XS")} == {ggml_q8_k}


def test_int8_beside_outliers_equals_bitsandbytes(inputs):
    from bitsandbytes import functional

    codes, scales, columns = functional.int8_vectorwise_quant(inputs.half(), threshold=6.0)
    theirs = codes.float() * scales[:, None] / 127
    theirs[:, columns] = inputs.half().float()[:, columns]
    ours = int8_beside_outliers(inputs)
    assert 2 <= len(columns) < 20
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rounding", [fp8_per_token, fp8_per_group])
def test_fp8_keeps_the_largest_and_three_bits_of_the_rest(inputs, rounding):
    x = inputs[:, :200]
    rounded = rounding(x)
    error = (rounded - x).abs() / x.abs().clamp(min=1e-30)
    normal = x.abs() > x.abs().amax(-1, keepdim=True) / 448 / 32
    assert error[normal].max() <= 2**-4 * 1.001
    largest = x.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(rounded.gather(-1, largest), x.gather(-1, largest))


def test_fp8_groups_do_not_see_each_other(inputs):
    alone = fp8_per_token(inputs[:, 128:256])
    assert torch.equal(fp8_per_group(inputs)[:, 128:256], alone)


def test_one_scale_per_token(inputs):
    alone = torch.cat([int8_per_token(row[None]) for row in inputs])
    assert torch.equal(int8_per_token(inputs), alone)


def test_torch_measures_ggufs_as_llama_does(demo_ggufs):
    from qwen3q.data.texts import evaluation_text

    found = {}
    for kind in ("llama", "torch"):
        run = measure_fidelity(
            find_artefact(str(demo_ggufs["F32"])),
            [find_artefact(str(demo_ggufs[name])) for name in ("Q8_0", "Q4_K_M", "Q2_K")],
            evaluation_text(),
            TextOptions(256, 20, parse_special=True),
            BackendOptions(BackendKind(kind), threads=1, device="cpu"),
        )
        found[kind] = [result.fidelity for result in run.results]
    for ours, theirs in zip(found["torch"], found["llama"], strict=True):
        # which inputs round up depends on a product's last bit, and that on the processor
        assert ours.kl_mean.value == pytest.approx(theirs.kl_mean.value, rel=0.06)
        assert ours.perplexity.value == pytest.approx(theirs.perplexity.value, rel=2e-3)
