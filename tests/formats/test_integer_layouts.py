"""Packed layouts against element-by-element readings of their definitions, and round trips."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from qwen3q.errors import CheckpointError
from qwen3q.formats import awq, bits, compressed_tensors, gptq
from qwen3q.formats.folder import pack_linear, unpack_linear
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.plan.schemes import PER_CHANNEL, Override, parse_scheme


def make_linear(
    width: int, out: int, columns: int, group: int, *, symmetric: bool, dtype: torch.dtype
) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(width * 1000 + out + columns + group)
    groups = columns // group
    codes = torch.randint(0, 1 << width, (out, columns), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(out, groups, generator=generator) * 0.1 + 1e-3).to(dtype).float()
    if symmetric:
        zeros = torch.full((out, groups), 1 << (width - 1), dtype=torch.uint8)
    else:
        zeros = torch.randint(1, 1 << width, (out, groups), generator=generator, dtype=torch.uint8)
    return QuantizedLinear(codes, scales, zeros, width, group, symmetric)


def word_bits(word: int, start: int, width: int) -> int:
    return ((word & 0xFFFFFFFF) >> start) & ((1 << width) - 1)


def stream_bits(words: list[int], index: int, width: int) -> int:
    """Code ``index`` of a stream of 32-bit words, least significant bit first."""
    whole = sum((word & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return (whole >> (index * width)) & ((1 << width) - 1)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_bit_stream_against_python_integers(width: int) -> None:
    codes = torch.randint(0, 1 << width, (3, 64), dtype=torch.uint8)
    words = bits.pack(codes, width)
    assert words.dtype == torch.int32
    assert words.shape == (3, 64 * width // 32)
    for row in range(3):
        for j in range(64):
            assert stream_bits(words[row].tolist(), j, width) == codes[row, j]
    assert torch.equal(bits.unpack(words, width), codes)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_gptq_against_its_definition(width: int, symmetric: bool, group: int) -> None:
    linear = make_linear(width, 32, 64, group, symmetric=symmetric, dtype=torch.float16)
    stored = gptq.pack(linear)
    expected = linear.dequantize()
    qweight, qzeros = stored["qweight"].tolist(), stored["qzeros"].tolist()
    columns = list(zip(*qweight, strict=True))
    for n in range(32):
        for k in range(64):
            group_of_k = int(stored["g_idx"][k])
            assert group_of_k == k // group
            q = stream_bits(list(columns[n]), k, width)
            z = stream_bits(qzeros[group_of_k], n, width)
            weight = (q - (z + 1)) * float(stored["scales"][group_of_k, n])
            assert weight == pytest.approx(float(expected[n, k]), rel=1e-6)
    assert torch.equal(gptq.dequantize(stored, width), expected)


def test_gptq_symmetric_zero_words() -> None:
    linear = make_linear(4, 32, 64, 32, symmetric=True, dtype=torch.float16)
    assert {w & 0xFFFFFFFF for w in gptq.pack(linear)["qzeros"].flatten().tolist()} == {0x77777777}
    linear = make_linear(8, 32, 64, 32, symmetric=True, dtype=torch.float16)
    assert {w & 0xFFFFFFFF for w in gptq.pack(linear)["qzeros"].flatten().tolist()} == {0x7F7F7F7F}


def test_gptq_reads_activation_order_and_version_2() -> None:
    linear = make_linear(4, 32, 64, 32, symmetric=False, dtype=torch.float16)
    stored = gptq.pack(linear)
    order = torch.randperm(64)
    shuffled = QuantizedLinear(
        linear.codes[:, order], linear.scales, linear.zeros, 4, 32, symmetric=False
    )
    acted = {**stored, "qweight": gptq.pack(shuffled)["qweight"], "g_idx": stored["g_idx"][order]}
    assert torch.equal(gptq.dequantize(acted, 4), linear.dequantize()[:, order])
    version_2 = {**stored, "qzeros": bits.pack(linear.zeros.t().contiguous(), 4)}
    assert torch.equal(gptq.dequantize(version_2, 4, zero_offset=0), linear.dequantize())
    broken = {**stored, "g_idx": torch.full((64,), 9, dtype=torch.int32)}
    with pytest.raises(CheckpointError, match="outside the 2 groups"):
        gptq.dequantize(broken, 4)


def test_gptq_refuses_what_it_cannot_store() -> None:
    linear = make_linear(4, 32, 64, 32, symmetric=False, dtype=torch.float16)
    linear.zeros[3, 1] = 0
    with pytest.raises(CheckpointError, match="zero point of 0"):
        gptq.pack(linear)
    wide = make_linear(4, 32, 64, 32, symmetric=True, dtype=torch.float32)
    with pytest.raises(CheckpointError, match="not rounded to float16"):
        gptq.pack(wide)


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_against_its_definition(symmetric: bool) -> None:
    linear = make_linear(4, 16, 64, 32, symmetric=symmetric, dtype=torch.float16)
    stored = awq.pack(linear)
    assert stored["qweight"].shape == (64, 2)
    assert stored["qzeros"].shape == (2, 2)
    expected = linear.dequantize()
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for k in range(64):
        for column in range(2):
            for nibble in range(8):
                n = 8 * column + order[nibble]
                q = word_bits(int(stored["qweight"][k, column]), 4 * nibble, 4)
                z = word_bits(int(stored["qzeros"][k // 32, column]), 4 * nibble, 4)
                weight = (q - z) * float(stored["scales"][k // 32, n])
                assert weight == pytest.approx(float(expected[n, k]), rel=1e-6)
    assert torch.equal(awq.dequantize(stored), expected)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized_against_its_definition(width: int, symmetric: bool) -> None:
    linear = make_linear(width, 16, 64, 32, symmetric=symmetric, dtype=torch.bfloat16)
    stored = compressed_tensors.pack_words(linear)
    expected = linear.dequantize()
    assert stored["weight_shape"].tolist() == [16, 64]
    assert ("weight_zero_point" in stored) is not symmetric
    offset = 1 << (width - 1)
    for n in range(16):
        for k in range(64):
            signed = stream_bits(stored["weight_packed"][n].tolist(), k, width) - offset
            zero = 0
            if not symmetric:
                words = stored["weight_zero_point"][:, k // 32].tolist()
                zero = stream_bits(words, n, width) - offset
            weight = (signed - zero) * float(stored["weight_scale"][n, k // 32])
            assert weight == pytest.approx(float(expected[n, k]), rel=1e-6)
    assert torch.equal(compressed_tensors.dequantize_words(stored, width, (16, 64)), expected)


def test_int8_is_a_plain_product() -> None:
    linear = make_linear(8, 16, 64, 64, symmetric=True, dtype=torch.bfloat16)
    stored = compressed_tensors.pack_int8(linear)
    assert stored["weight"].dtype == torch.int8
    product = stored["weight"].float() * stored["weight_scale"].float()
    assert torch.equal(product, linear.dequantize())
    assert torch.equal(compressed_tensors.dequantize_int8(stored), linear.dequantize())


def test_overrides_reach_the_configs() -> None:
    overrides = (
        Override("model.layers.0.*", keep_float=True),
        Override("*.down_proj", bits=8, group_size=32),
    )
    config = gptq.quantization_config(parse_scheme("gptq:int4", overrides=overrides))
    assert config["dynamic"] == {
        r"-:model\.layers\.0\..*$": {},
        r"+:.*\.down_proj$": {"bits": 8, "group_size": 32, "sym": True},
    }
    scheme = parse_scheme("int4", overrides=overrides)
    groups = compressed_tensors.quantization_config(scheme, ["lm_head"])["config_groups"]
    assert groups["group_0"]["targets"] == [r"re:.*\.down_proj$"]
    assert groups["group_0"]["weights"]["num_bits"] == 8
    assert groups["group_1"]["targets"] == ["Linear"]
    assert groups["group_1"]["weights"]["group_size"] == 128


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["gptq:int2", "gptq:int3", "gptq:int4", "gptq:int8"])
def test_gptq_is_restored_to_the_bit(name: str, symmetric: bool) -> None:
    check_restored(name, 32, symmetric, torch.float16)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("awq:int4", torch.float16), ("int4", torch.bfloat16), ("w8a16", torch.bfloat16)],
)
def test_other_groups_are_restored_to_the_bit(
    name: str, dtype: torch.dtype, symmetric: bool
) -> None:
    check_restored(name, 32, symmetric, dtype)


def test_int8_is_restored_to_the_bit() -> None:
    check_restored("int8", PER_CHANNEL, True, torch.bfloat16)


def check_restored(name: str, group: int, symmetric: bool, dtype: torch.dtype) -> None:
    scheme = parse_scheme(name, group_size=group, symmetric=symmetric)
    linear = make_linear(scheme.bits, 32, 64, scheme.group_of(64), symmetric=symmetric, dtype=dtype)
    restored = unpack_linear(scheme, pack_linear(scheme, linear))
    for field in fields(linear):
        before, after = getattr(linear, field.name), getattr(restored, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype
            assert before.stride() == after.stride()
            assert torch.equal(before, after), field.name
        else:
            assert before == after, field.name
