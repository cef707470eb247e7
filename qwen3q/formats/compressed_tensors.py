"""compressed-tensors: ``pack-quantized`` (W4A16, W8A16) and ``int-quantized`` (W8A8).

What llm-compressor writes and vLLM and transformers read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qwen3q.errors import CheckpointError
from qwen3q.formats import bits as bitstream
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.formats.scales import dequantize_groups, stored_scales
from qwen3q.plan.schemes import PER_CHANNEL, Layout, Scheme


def pack_words(linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """A ``pack-quantized`` linear by suffix: ``weight_packed`` int32 ``[out, in * bits / 32]``, ...

    A signed code q is stored as ``q + 2**(bits-1)``, which is the grid's own code.

    Raises:
        CheckpointError: scales that are not rounded to bf16.
    """
    tensors = {
        "weight_packed": bitstream.pack(linear.codes, linear.bits),
        "weight_scale": stored_scales(linear.scales, torch.bfloat16),
        "weight_shape": torch.tensor(linear.codes.shape, dtype=torch.int64),
    }
    if not linear.symmetric:
        zeros = bitstream.pack(linear.zeros.t().contiguous(), linear.bits)
        tensors["weight_zero_point"] = zeros.t().contiguous()
    return tensors


def unpack_words(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedLinear:
    """Undoes ``pack_words`` for a linear that was stored in ``scheme``."""
    codes = bitstream.unpack(tensors["weight_packed"], scheme.bits)
    scales = tensors["weight_scale"].float()
    if scheme.symmetric:
        zeros = torch.full_like(scales, 1 << (scheme.bits - 1), dtype=torch.uint8)
    else:
        stored = tensors["weight_zero_point"].t().contiguous()
        zeros = bitstream.unpack(stored, scheme.bits).t().contiguous()
    group = scheme.group_of(codes.shape[1])
    return QuantizedLinear(codes, scales, zeros, scheme.bits, group, scheme.symmetric)


def dequantize_words(
    tensors: Mapping[str, torch.Tensor], bits: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """The weights of a ``pack-quantized`` linear, float32 ``shape`` = ``[out, in]``.

    ``weight_g_idx`` (activation order) gives each input's group where it is stored.

    Raises:
        CheckpointError: ``weight_shape`` is another, or ``weight_g_idx`` does not fit.
    """
    out, columns = shape
    if tensors["weight_shape"].tolist() != [out, columns]:
        raise CheckpointError(
            f"weight_shape says {tensors['weight_shape'].tolist()}, not {[out, columns]}."
        )
    codes = bitstream.unpack(tensors["weight_packed"], bits)[:, :columns]
    scales = tensors["weight_scale"]
    zeros = torch.full_like(scales, float(1 << (bits - 1)))
    if "weight_zero_point" in tensors:
        stored = tensors["weight_zero_point"].t().contiguous()
        zeros = bitstream.unpack(stored, bits).t()[:out]
    return dequantize_groups(codes, scales, zeros, tensors.get("weight_g_idx"))


def pack_int8(linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """An ``int-quantized`` linear by suffix: ``weight`` int8 ``[out, in]``, ``weight_scale``.

    Raises:
        CheckpointError: scales that are not rounded to bf16.
    """
    return {
        "weight": (linear.codes ^ 0x80).view(torch.int8),
        "weight_scale": stored_scales(linear.scales, torch.bfloat16),
    }


def unpack_int8(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedLinear:
    """Undoes ``pack_int8`` for a linear that was stored in ``scheme``."""
    codes = tensors["weight"].view(torch.uint8) ^ 0x80
    scales = tensors["weight_scale"].float()
    zeros = torch.full_like(scales, 0x80, dtype=torch.uint8)
    return QuantizedLinear(codes, scales, zeros, 8, codes.shape[1], symmetric=True)


def dequantize_int8(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weights of an ``int-quantized`` linear, float32 ``[out, in]``; groups are allowed."""
    return dequantize_groups(
        tensors["weight"], tensors["weight_scale"], tensors.get("weight_zero_point")
    )


def quantization_config(scheme: Scheme, kept_float: list[str]) -> dict[str, Any]:
    """What ``config.json`` says; exceptions get a group of their own, ahead of all linears.

    Args:
        kept_float: modules left in float, by full name.
    """
    exceptions = [override for override in scheme.overrides if not override.keep_float]
    groups = [_group(scheme.with_override(o), [f"re:{o.regex}"]) for o in exceptions]
    groups.append(_group(scheme, ["Linear"]))
    return {
        "quant_method": "compressed-tensors",
        "format": str(scheme.layout),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": kept_float,
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    per_channel = scheme.group_size == PER_CHANNEL
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if per_channel else "group",
        "group_size": None if per_channel else scheme.group_size,
        "dynamic": False,
    }
    activations = None
    if scheme.layout is Layout.INT_QUANTIZED:
        activations = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
    }
