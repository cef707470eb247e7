"""One linear in the layout of its scheme, and what ``config.json`` says about the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qwen3q.formats import awq, bitsandbytes, compressed_tensors, fp8, gptq
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, model_tensors
from qwen3q.plan.schemes import Layout, Scheme


def pack_linear(scheme: Scheme, linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """The tensors of a uniformly quantized linear by suffix.

    Raises:
        CheckpointError: codes, scales or zeros that the layout can't store.
    """
    match scheme.layout:
        case Layout.GPTQ:
            return gptq.pack(linear)
        case Layout.AWQ:
            return awq.pack(linear)
        case Layout.PACK_QUANTIZED:
            return compressed_tensors.pack_words(linear)
        case Layout.INT_QUANTIZED:
            return compressed_tensors.pack_int8(linear)
        case _:
            raise ValueError(f"{scheme.layout} holds no QuantizedLinear")


def unpack_linear(scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> QuantizedLinear:
    """Undoes ``pack_linear``, to the bit."""
    match scheme.layout:
        case Layout.GPTQ:
            return gptq.unpack(tensors, scheme)
        case Layout.AWQ:
            return awq.unpack(tensors, scheme)
        case Layout.PACK_QUANTIZED:
            return compressed_tensors.unpack_words(tensors, scheme)
        case Layout.INT_QUANTIZED:
            return compressed_tensors.unpack_int8(tensors, scheme)
        case _:
            raise ValueError(f"{scheme.layout} holds no QuantizedLinear")


def pack_weight(scheme: Scheme, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors by suffix of a linear ``[out, in]`` in a layout that needs no calibration.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    match scheme.layout:
        case Layout.BNB_NF4:
            return bitsandbytes.pack_nf4(weight)
        case Layout.BNB_INT8:
            return bitsandbytes.pack_int8(weight)
        case Layout.FP8:
            return fp8.pack(weight)
        case _:
            raise ValueError(f"{scheme.layout} is not packed from weights alone")


def dequantize_packed(
    scheme: Scheme, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]
) -> torch.Tensor:
    """What ``pack_weight`` stored, float32 ``shape`` = ``[out, in]``."""
    match scheme.layout:
        case Layout.BNB_NF4:
            return bitsandbytes.dequantize_4bit(tensors, shape)
        case Layout.BNB_INT8:
            return bitsandbytes.dequantize_int8(tensors)
        case Layout.FP8:
            return fp8.dequantize(tensors)
        case _:
            raise ValueError(f"{scheme.layout} is not packed from weights alone")


def quantization_config(scheme: Scheme, config: Qwen3Config) -> dict[str, Any] | None:
    """``config.json``'s ``quantization_config``; None for a folder that is not quantized."""
    kept = kept_modules(scheme, config)
    match scheme.layout:
        case Layout.GPTQ:
            return gptq.quantization_config(scheme, has_router=config.is_moe)
        case Layout.AWQ:
            return awq.quantization_config(scheme, kept, config.num_hidden_layers)
        case Layout.PACK_QUANTIZED | Layout.INT_QUANTIZED:
            return compressed_tensors.quantization_config(scheme, kept)
        case Layout.BNB_NF4 | Layout.BNB_INT8:
            return bitsandbytes.quantization_config(scheme, kept, config.dtype)
        case Layout.FP8:
            return fp8.quantization_config(kept)
        case Layout.NVFP4 | Layout.FLOAT:
            return None


def kept_modules(scheme: Scheme, config: Qwen3Config) -> list[str]:
    """Linear modules that stay in float, by full name: ``lm_head``, routers, exceptions."""
    kept = [
        spec.name.removesuffix(".weight")
        for spec in model_tensors(config)
        if spec.role is Role.ROUTER or (spec.is_linear and scheme.at(spec.name) is None)
    ]
    return ["lm_head", *kept]
