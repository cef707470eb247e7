"""bitsandbytes and FP8 against bitsandbytes' own dequantization and properties of the format."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from bitsandbytes import functional

from qwen3q.errors import CheckpointError
from qwen3q.formats import bitsandbytes, fp8
from qwen3q.plan.schemes import parse_scheme


@pytest.fixture
def weight() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(64, 192, generator=generator) * 0.05).bfloat16()


def test_nf4_equals_bitsandbytes(weight: torch.Tensor) -> None:
    stored = bitsandbytes.pack_nf4(weight)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(stored["weight"], packed)
    own = state.as_dict(packed=True)
    assert {f"weight.{name}" for name in own} | {"weight"} == stored.keys()
    for name, value in own.items():
        assert torch.equal(stored[f"weight.{name}"], value), name
    theirs = functional.dequantize_4bit(packed, state).float()
    ours = bitsandbytes.dequantize_4bit(stored, weight.shape)
    assert torch.allclose(ours, theirs, rtol=2**-8, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_reads_double_quantization(weight: torch.Tensor, kind: str) -> None:
    packed, state = functional.quantize_4bit(
        weight.float(), blocksize=64, quant_type=kind, compress_statistics=True
    )
    stored = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    assert stored["weight.absmax"].dtype == torch.uint8
    ours = bitsandbytes.dequantize_4bit({**stored, "weight": packed}, weight.shape)
    theirs = functional.dequantize_4bit(packed, state)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block", [100, 1000])
def test_double_quantization_whose_blocks_do_not_fit_is_refused(block: int) -> None:
    packed, state = functional.quantize_4bit(
        torch.randn(256, 192), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    assert state.state2.absmax.numel() == 3
    state.state2.blocksize = block
    stored = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    with pytest.raises(CheckpointError, match="does not describe the weights"):
        bitsandbytes.dequantize_4bit({**stored, "weight": packed}, (256, 192))


def state_of(**changed: object) -> bytes:
    plain = {"quant_type": "nf4", "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.1}
    return json.dumps(plain | changed).encode()


HOSTILE = {
    "an endless block": {"state": state_of(blocksize=1e999)},
    "a block beyond 64 bits": {"state": state_of(blocksize=10**30)},
    "an endless inner block": {"state": state_of(nested_blocksize=1e999)},
    "an inner block of a billion": {
        "state": state_of(nested_blocksize=10**12), "nested_absmax": torch.ones(2)
    },
    "a large inner block that is one": {
        "state": state_of(nested_blocksize=10**12, blocksize=63), "nested_absmax": torch.ones(1)
    },
    "deep JSON": {"state": b"[" * 100_000},
    "no object": {"state": b"[]"},
    "few values": {"quant_map": torch.ones(15)},
    "few inner values": {"nested_quant_map": torch.ones(3)},
    "no maxima": {"absmax": None},
    "a number for a state": {
        "quant_state.bitsandbytes__nf4": torch.tensor(1 << 40, dtype=torch.int64)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_state_that_describes_nothing_is_one_sentence(name: str) -> None:
    packed, state = functional.quantize_4bit(
        torch.randn(64, 192), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    stored = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    for key, value in HOSTILE[name].items():
        if key == "state":
            key = "quant_state.bitsandbytes__nf4"
            value = torch.tensor(list(value), dtype=torch.uint8)
        stored[f"weight.{key}"] = value
    stored = {key: value for key, value in stored.items() if value is not None}
    with pytest.raises(CheckpointError, match="does not describe the weights"):
        bitsandbytes.dequantize_4bit({**stored, "weight": packed}, (64, 192))


@pytest.mark.parametrize("name", ["bnb:nf4", "bnb:int8"])
def test_the_config_is_what_transformers_writes(name: str) -> None:
    asked = {"load_in_4bit": True} if name == "bnb:nf4" else {"load_in_8bit": True}
    theirs = transformers.BitsAndBytesConfig(
        **asked,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head"],
    ).to_dict()
    ours = bitsandbytes.quantization_config(parse_scheme(name), ["lm_head"], "bfloat16")
    assert ours == {key: theirs[key] for key in ours}


def test_int8_equals_bitsandbytes(weight: torch.Tensor) -> None:
    stored = bitsandbytes.pack_int8(weight)
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(stored["weight"], codes)
    assert torch.equal(stored["SCB"], scales)
    theirs = functional.int8_vectorwise_dequant(codes, scales)
    assert torch.allclose(bitsandbytes.dequantize_int8(stored), theirs.float(), rtol=1e-3)
    error = (bitsandbytes.dequantize_int8(stored) - weight.float()).abs()
    assert (error <= weight.float().abs().amax(1, keepdim=True) / 127 * 0.51).all()


def test_fp8_of_a_block_of_zeros_is_zeros() -> None:
    weight = torch.randn(256, 128)
    weight[:128] = 0
    stored = fp8.pack(weight)
    assert torch.equal(fp8.dequantize(stored)[:128], torch.zeros(128, 128))
    assert torch.isfinite(stored["weight_scale_inv"]).all()


@pytest.mark.parametrize("shape", [(256, 384), (200, 130)])
def test_fp8_error_is_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    stored = fp8.pack(weight)
    assert stored["weight"].shape == shape
    assert stored["weight_scale_inv"].shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    wide = torch.nn.functional.pad(weight.float().abs(), (0, -shape[1] % 128, 0, -shape[0] % 128))
    tops = wide.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).amax((1, 3)) / 448
    scales = stored["weight_scale_inv"]
    assert (scales.float() >= tops).all()
    assert (torch.nextafter(scales, torch.zeros_like(scales)).float() < tops).all()
    error = (fp8.dequantize(stored) - weight.float()).abs()
    scale = stored["weight_scale_inv"].float().repeat_interleave(128, 0)[: shape[0]]
    scale = scale.repeat_interleave(128, 1)[:, : shape[1]]
    # e4m3: 3 bits of mantissa, and steps of 2**-9 below 2**-6
    assert (error <= torch.maximum(weight.float().abs() * 2**-4, scale * 2**-10)).all()
