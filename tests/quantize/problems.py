"""Correlated inputs and weights that rounding algorithms are tried on."""

from __future__ import annotations

import torch

from qwen3q.quantize.gptq import Factor

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
"""A model's config, where it differs from the demo's."""
SMALL_EXPERTS = SMALL | {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}


def inputs(tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    """``[tokens, channels]``: correlated, of uneven size, as hidden states are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, channels, generator=generator)
    mixed = mixed @ torch.randn(channels, channels, generator=generator) / channels**0.5
    sizes = torch.exp(0.7 * torch.randn(channels, generator=generator))
    return (mixed + 0.3 * torch.randn(tokens, channels, generator=generator)) * sizes


def hessian(tokens: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Mean of ``x^T x``, float32 ``[1, channels, channels]``."""
    x = inputs(tokens, channels, seed).double()
    return (x.T @ x / tokens).float()[None]


def weights(channels: int, outputs: int, seed: int = 1) -> torch.Tensor:
    """``[1, channels, outputs]`` with heavy tails."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(channels, outputs, generator=generator)
    return (values * (0.5 + values.abs()) * 0.02)[None]


def output_error(rounded: torch.Tensor, target: torch.Tensor, moments: torch.Tensor) -> float:
    """``tr(E^T H E)`` in float64."""
    off = (rounded - target).double()
    return float((off * (moments.double() @ off)).sum())


def whole_hessian(factor: Factor) -> torch.Tensor:
    """The damped Hessians that a factor holds, in its order, ``[batch, in, in]``."""
    above = factor.square.triu(1)
    return above + above.mT + torch.diag_embed(factor.diagonal)
