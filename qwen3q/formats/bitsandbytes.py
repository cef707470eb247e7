"""bitsandbytes: NF4 and row-wise INT8, quantized tensor by tensor with its functional API.

The state dict is written directly: ``save_pretrained`` of a model that has run can hold weights
that were repacked for the CPU. NF4: Dettmers et al., 2023, arXiv 2305.14314; INT8: 2208.07339.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from qwen3q.checkpoint.torch_io import dtype_name
from qwen3q.errors import CheckpointError, MissingPackageError
from qwen3q.plan.folder import nf4_state_json
from qwen3q.plan.schemes import NF4_BLOCK, Layout, Scheme

INT8_THRESHOLD = 6.0
"""Inputs above it stay in 16 bits at inference (arXiv 2208.07339, section 3.2)."""


def pack_nf4(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear ``[out, in]`` (bf16, fp16 or fp32) as NF4 in blocks of 64, by suffix.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    packed, state = load_bitsandbytes().quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False
    )
    shape = tuple(weight.shape)
    text = nf4_state_json(shape, dtype_name(weight))
    return {
        "weight": packed,
        "weight.absmax": state.absmax,
        "weight.quant_map": state.code,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }


def dequantize_4bit(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of an NF4 or FP4 linear, float32 ``shape`` = ``[out, in]``.

    Reads double quantization too.

    Raises:
        CheckpointError: the state does not describe the packed weights.
    """
    key = next(k for k in tensors if k.startswith("weight.quant_state.bitsandbytes__"))
    try:
        packed, absmax = tensors["weight"].flatten(), tensors["weight.absmax"]
        state = json.loads(bytes(tensors[key].flatten().tolist()))
        block = int(state["blocksize"])
        if absmax.dtype == torch.uint8:
            absmax = _nested_absmax(tensors, state)
        values = _pairs(tensors["weight.quant_map"].float())[packed.int()].view(-1, block)
        return values.mul_(absmax.float().view(-1, 1)).view(shape)
    except (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError):
        raise CheckpointError(f"{key} does not describe the weights beside it.") from None


def pack_int8(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear ``[out, in]`` as INT8 with one scale per output, by suffix.

    bitsandbytes rounds weights to fp16 first, as its own ``Int8Params`` does.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    codes, absmax, _ = load_bitsandbytes().int8_vectorwise_quant(weight.to(torch.float16))
    return {
        "weight": codes,
        "SCB": absmax.view(-1),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def dequantize_int8(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weights of an INT8 linear, float32 ``[out, in]``: ``q * SCB / 127``."""
    return tensors["weight"].float() * (tensors["SCB"].float().view(-1, 1) / 127.0)


def quantization_config(scheme: Scheme, kept_float: list[str], dtype: str) -> dict[str, Any]:
    """What ``config.json`` says.

    Args:
        kept_float: modules left in float, by full name, ``lm_head`` included.
        dtype: compute dtype at inference: the model's own.
    """
    four = scheme.layout is Layout.BNB_NF4
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": INT8_THRESHOLD,
        "llm_int8_skip_modules": kept_float,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
    }


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """What each byte holds, float32 ``[256, 2]``: the high nibble's value, then the low one's."""
    byte = torch.arange(256)
    return torch.stack((values[byte >> 4], values[byte & 15]), dim=-1)


def _nested_absmax(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> torch.Tensor:
    """Double quantization: block maxima as 8-bit codes with maxima and an offset of their own."""
    codes = tensors["weight.absmax"].long()
    values = tensors["weight.nested_quant_map"].float()[codes]
    outer = tensors["weight.nested_absmax"].float()
    block = int(state["nested_blocksize"])
    if not (outer.numel() - 1) * block < values.numel() <= outer.numel() * block:
        raise ValueError("nested_blocksize does not fit nested_absmax")
    scales = outer.repeat_interleave(min(block, values.numel()))[: values.numel()]
    return values * scales + float(state["nested_offset"])


def load_bitsandbytes() -> Any:
    """bitsandbytes' functions.

    Raises:
        MissingPackageError: it is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as functional
    except ImportError:
        raise MissingPackageError(
            "bitsandbytes is not installed, which bnb formats are quantized with.",
            "pip install 'qwen3q[bnb]'",
        ) from None
    return functional
