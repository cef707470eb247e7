"""The AWQ layout, version "gemm": what AutoAWQ wrote and vLLM, SGLang and transformers read.

``W = (q - z) * s``, 4 bits, packed along the outputs in the order AutoAWQ's kernel wants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from qwen3q.formats import bits as bitstream
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.formats.scales import dequantize_groups, stored_scales
from qwen3q.plan.schemes import Scheme

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word holds output ``8 * column + ORDER[i]``."""
_INVERSE = tuple(ORDER.index(i) for i in range(8))


def pack(linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """The tensors of one linear by suffix: ``qweight`` int32 ``[in, out / 8]``, ...

    Raises:
        CheckpointError: scales that are not rounded to fp16.
    """
    return {
        "qweight": _pack(linear.codes),
        "qzeros": _pack(linear.zeros),
        "scales": stored_scales(linear.scales, torch.float16).t().contiguous(),
    }


def unpack(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedLinear:
    """Undoes ``pack`` for a linear that was stored in ``scheme``."""
    codes = _unpack(tensors["qweight"]).contiguous()
    zeros = _unpack(tensors["qzeros"]).contiguous()
    scales = tensors["scales"].t().float().contiguous()
    group = scheme.group_of(codes.shape[1])
    return QuantizedLinear(codes, scales, zeros, scheme.bits, group, scheme.symmetric)


def dequantize(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weights float32 ``[out, in]``."""
    return dequantize_groups(
        _unpack(tensors["qweight"]), tensors["scales"].t(), _unpack(tensors["qzeros"])
    )


def quantization_config(scheme: Scheme, kept_float: list[str], layers: int) -> dict[str, Any]:
    """What ``config.json`` says.

    Args:
        kept_float: modules left in float, by full name.
        layers: decoder layers of the model.
    """
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "zero_point": True,
        "modules_to_not_convert": _substrings(kept_float, layers),
    }


def _substrings(modules: list[str], layers: int) -> list[str]:
    """Names for loaders, which look for them inside a module's name.

    AutoAWQ looks inside the name within a layer, and finds no full name there. So what every layer
    keeps is named as in a layer; with a router in every layer, ``mlp.gate`` hits no ``gate_proj``.
    """
    inside = {name: name.split(".", 3)[-1] for name in modules if name.startswith("model.layers.")}
    counts = Counter(inside.values())
    chosen = (
        inside[name] if name in inside and counts[inside[name]] == layers else name
        for name in modules
    )
    return list(dict.fromkeys(chosen))


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[out, n]`` to int32 ``[n, out / 8]``."""
    octets = codes.view(-1, 8, codes.shape[1])
    pairs = zip(ORDER[::2], ORDER[1::2], strict=True)
    data = [octets[:, low] | (octets[:, high] << 4) for low, high in pairs]
    words = torch.stack(data, dim=-1).view(torch.int32).squeeze(-1)
    return words.t().contiguous()


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """Undoes ``_pack``."""
    octets = bitstream.unpack(words, 4).view(words.shape[0], -1, 8)
    return octets[..., list(_INVERSE)].flatten(1).t()
