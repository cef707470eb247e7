"""FP8 in blocks of 128 x 128, as Qwen's own FP8 releases and DeepSeek-V3 store it.

``W = q * weight_scale_inv``, q in float8 e4m3 (arXiv 2412.19437, section 3.3). No calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from qwen3q.plan.schemes import FP8_BLOCK

LARGEST = 448.0
"""Largest finite e4m3 value."""


def pack(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear ``[out, in]`` as ``weight`` e4m3 and ``weight_scale_inv`` bf16 per block."""
    out, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % FP8_BLOCK, 0, -out % FP8_BLOCK))
    rows, wide = padded.shape
    blocks = padded.view(rows // FP8_BLOCK, FP8_BLOCK, wide // FP8_BLOCK, FP8_BLOCK)
    largest = blocks.abs().amax(dim=(1, 3))
    scales = _round_up_to_bf16((largest / LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny))
    codes = (weight.float() / _spread(scales, out, columns)).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weights of a linear in blocks, float32 ``[out, in]``."""
    weight = tensors["weight"].float()
    return weight * _spread(tensors["weight_scale_inv"], *weight.shape)


def dequantize_channels(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weights of a compressed-tensors ``float-quantized`` linear, float32 ``[out, in]``:
    one ``weight_scale`` per output channel or for all."""
    return tensors["weight"].float() * tensors["weight_scale"].float().reshape(-1, 1)


def quantization_config(kept_float: list[str]) -> dict[str, Any]:
    """What ``config.json`` says; activations are scaled while they run."""
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        "modules_to_not_convert": kept_float,
    }


def _spread(scales: torch.Tensor, out: int, columns: int) -> torch.Tensor:
    rows = scales.float().repeat_interleave(FP8_BLOCK, dim=0)[:out]
    return rows.repeat_interleave(FP8_BLOCK, dim=1)[:, :columns]


def _round_up_to_bf16(values: torch.Tensor) -> torch.Tensor:
    """Never below the value, so that no weight leaves the range."""
    rounded = values.bfloat16()
    low = rounded.float() < values
    return torch.where(low, torch.nextafter(rounded, torch.full_like(rounded, torch.inf)), rounded)
