"""The GPTQ layout, version 1: what AutoGPTQ wrote and vLLM, SGLang and gptqmodel read.

``W[n, k] = (q[k, n] - (stored_zero[g_idx[k], n] + 1)) * scales[g_idx[k], n]``; version 2 stores
the zero itself (GPTQModel, ``checkpoint_format``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from qwen3q.errors import CheckpointError
from qwen3q.formats import bits as bitstream
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.formats.scales import dequantize_groups, stored_scales
from qwen3q.plan.schemes import Override, Scheme

ROUTERS = r"-:.*\.mlp\.gate$"


def pack(linear: QuantizedLinear) -> dict[str, torch.Tensor]:
    """The tensors of one linear by suffix: ``qweight`` int32 ``[in * bits / 32, out]``, ...

    Raises:
        CheckpointError: a zero point of 0, which version 1 can't store, or scales not in fp16.
    """
    if (linear.zeros == 0).any():
        raise CheckpointError("GPTQ version 1 can't store a zero point of 0.")
    columns = linear.codes.shape[1]
    groups = torch.arange(columns, dtype=torch.int32) // linear.group_size
    return {
        "qweight": bitstream.pack(linear.codes, linear.bits).t().contiguous(),
        "qzeros": bitstream.pack((linear.zeros - 1).t().contiguous(), linear.bits),
        "scales": stored_scales(linear.scales, torch.float16).t().contiguous(),
        "g_idx": groups,
    }


def unpack(tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedLinear:
    """Undoes ``pack`` for a linear that was stored in ``scheme``."""
    codes = bitstream.unpack(tensors["qweight"].t().contiguous(), scheme.bits)
    zeros = bitstream.unpack(tensors["qzeros"], scheme.bits).t().contiguous() + 1
    scales = tensors["scales"].t().float().contiguous()
    group = scheme.group_of(codes.shape[1])
    return QuantizedLinear(codes, scales, zeros, scheme.bits, group, scheme.symmetric)


def dequantize(
    tensors: Mapping[str, torch.Tensor], bits: int, *, zero_offset: int = 1
) -> torch.Tensor:
    """The weights float32 ``[out, in]``; ``g_idx`` may come in any order, or be absent.

    Args:
        zero_offset: what the stored zeros lack: 1 in version 1, 0 in version 2.

    Raises:
        CheckpointError: scales or ``g_idx`` that do not fit the codes.
    """
    codes = bitstream.unpack(tensors["qweight"].t().contiguous(), bits)
    zeros = bitstream.unpack(tensors["qzeros"], bits).t().float() + zero_offset
    return dequantize_groups(codes, tensors["scales"].t(), zeros, tensors.get("g_idx"))


def quantization_config(scheme: Scheme, *, has_router: bool = False) -> dict[str, Any]:
    """What ``config.json`` says; the same keys go to ``quantize_config.json``.

    Overrides go to ``dynamic``, GPTQModel's exceptions by regular expression, which vLLM reads;
    so do the routers of experts, which stay in float.
    """
    config: dict[str, Any] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "true_sequential": True,
    }
    exceptions = dict(_exception(scheme, override) for override in scheme.overrides)
    if has_router:
        exceptions[ROUTERS] = {}
    if exceptions:
        config["dynamic"] = exceptions
    return config


def _exception(scheme: Scheme, override: Override) -> tuple[str, dict[str, Any]]:
    if override.keep_float:
        return f"-:{override.regex}", {}
    chosen = scheme.with_override(override)
    values = {"bits": chosen.bits, "group_size": chosen.group_size, "sym": chosen.symmetric}
    return f"+:{override.regex}", values
