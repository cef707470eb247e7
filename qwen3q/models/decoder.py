"""Qwen3 in torch, one decoder layer at a time: plain functions over a mapping of weights.

Weights are named as in the checkpoint, without ``model.layers.L.`` and ``.weight``:
``self_attn.q_proj``, ``mlp.experts.3.up_proj``. Every linear goes through one function, so a
caller can watch its input or quantize it. Equal to transformers' Qwen3 and Qwen3-MoE in float32;
with bfloat16 linears, norms and the residual stream stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3q.models.attention import grouped_attention
from qwen3q.models.config import Qwen3Config
from qwen3q.models.products import product

Weights = Mapping[str, torch.Tensor]
Linear = Callable[[str, torch.Tensor], torch.Tensor]
"""Called with a linear's name and its input ``[tokens, in]``; returns ``[tokens, out]``."""

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
O_PROJ = "self_attn.o_proj"
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"
ROUTER = "mlp.gate"


@dataclass(frozen=True, slots=True)
class Rope:
    """Cosines and sines of the rotary embedding, ``[length, head_dim]``, YaRN's scale included."""

    cos: torch.Tensor
    sin: torch.Tensor


def plain_linear(weights: Weights) -> Linear:
    """``x W^T`` with the weights as they are."""
    return lambda name, x: product(x, weights[name])


def decoder_layer(
    hidden: torch.Tensor,
    weights: Weights,
    config: Qwen3Config,
    rope: Rope,
    linear: Linear | None = None,
    wanted: slice = slice(None),
) -> torch.Tensor:
    """One decoder layer over rows that all start at position 0.

    Args:
        hidden: ``[rows, length, hidden_size]``.
        weights: this layer's tensors by short name.
        linear: how linears are computed; ``plain_linear(weights)`` if None.
        wanted: positions whose output is made; of a last layer often not all are used.

    Returns:
        The next layer's input, ``[rows, wanted, hidden_size]``.
    """
    linear = linear or plain_linear(weights)
    mixed = attention(hidden, weights, config, rope, linear)
    hidden = hidden[:, wanted] + linear(O_PROJ, mixed[:, wanted])
    return hidden + mlp(hidden, weights, config, linear)


def attention(
    hidden: torch.Tensor, weights: Weights, config: Qwen3Config, rope: Rope, linear: Linear
) -> torch.Tensor:
    """Norm, q/k/v, QK-norm, RoPE, causal attention: o_proj's input ``[rows, length, q_size]``."""
    x = rms_norm(hidden, weights["input_layernorm"], config.rms_norm_eps)
    x = x.to(weights[QKV[0]].dtype)
    q, k, v = (split_heads(linear(name, x), config.head_dim) for name in QKV)
    q = rotate(rms_norm(q, weights["self_attn.q_norm"], config.rms_norm_eps), rope)
    k = rotate(rms_norm(k, weights["self_attn.k_norm"], config.rms_norm_eps), rope)
    q, k, v = q.to(v.dtype), k.to(v.dtype), v.contiguous()
    return grouped_attention(q, k, v, causal=True).transpose(1, 2).flatten(2)


def mlp(
    hidden: torch.Tensor, weights: Weights, config: Qwen3Config, linear: Linear
) -> torch.Tensor:
    """Norm and the gated feed-forward, or the routed experts where the layer has a router."""
    x = rms_norm(hidden, weights["post_attention_layernorm"], config.rms_norm_eps)
    if ROUTER not in weights:
        return linear(DOWN, gated(x.to(weights[O_PROJ].dtype), *GATE_UP, linear))
    flat = x.flatten(0, 1)
    routing = route(flat, weights[ROUTER], config)
    return experts(flat.to(weights[O_PROJ].dtype), routing, config, linear).view_as(x)


def gated(x: torch.Tensor, gate: str, up: str, linear: Linear) -> torch.Tensor:
    """``silu(gate(x)) * up(x)``: down_proj's input."""
    return F.silu(linear(gate, x), inplace=True).mul_(linear(up, x))


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts each token goes to, and how much of each.

    Attributes:
        experts: int64 ``[tokens, num_experts_per_tok]``.
        shares: ``[tokens, num_experts_per_tok]``; they sum to 1 where ``norm_topk_prob``.
    """

    experts: torch.Tensor
    shares: torch.Tensor

    def tokens_of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that go to ``expert``, ascending, and their shares."""
        token, slot = (self.experts == expert).nonzero(as_tuple=True)
        return token, self.shares[token, slot]


def route(x: torch.Tensor, router: torch.Tensor, config: Qwen3Config) -> Routing:
    """Top-k of the router's softmax (in float32, as transformers does)."""
    probabilities = F.softmax(F.linear(x, router).float(), dim=-1)
    shares, chosen = probabilities.topk(config.num_experts_per_tok, dim=-1)
    if config.norm_topk_prob:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return Routing(chosen, shares)


def experts(x: torch.Tensor, routing: Routing, config: Qwen3Config, linear: Linear) -> torch.Tensor:
    """The weighted sum of the routed experts' outputs, ``[tokens, hidden_size]``."""
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in range(config.num_experts):
        token, share = routing.tokens_of(expert)
        if token.numel():
            gate, up, down = expert_names(expert)
            y = linear(down, gated(x[token], gate, up, linear))
            out.index_add_(0, token, y * share.unsqueeze(-1))
    return out


def expert_names(expert: int) -> tuple[str, str, str]:
    """Short names of one expert's gate, up and down projections."""
    prefix = f"mlp.experts.{expert}."
    return f"{prefix}gate_proj", f"{prefix}up_proj", f"{prefix}down_proj"


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x) * weight`` over the last dimension (Zhang and Sennrich, arXiv 1910.07467).

    In float32. Torch's own has a kernel for GPUs only; on a processor it walks over ``x`` more
    often than this does.
    """
    x, weight = x.float(), weight.float()
    if x.device.type != "cpu":
        fused: torch.Tensor = F.rms_norm(x, weight.shape, weight, eps)
        return fused
    size: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight)


def split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """``[rows, length, heads * head_dim]`` to ``[rows, heads, length, head_dim]``."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def rotate(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """RoPE over halves: element i is paired with ``i + head_dim / 2`` (arXiv 2104.09864).

    The result is contiguous whatever ``x`` is, as attention reads it fastest.
    """
    first, second = x.chunk(2, dim=-1)
    sines = rope.sin.chunk(2, dim=-1)
    out = torch.mul(x, rope.cos, out=x.new_empty(x.shape))
    turned = out.chunk(2, dim=-1)
    turned[0].addcmul_(second, sines[0], value=-1)
    turned[1].addcmul_(first, sines[1])
    return out


def rope_table(config: Qwen3Config, length: int, device: torch.device | str = "cpu") -> Rope:
    """Angles for positions ``0 .. length - 1``."""
    frequencies, scale = rope_frequencies(config)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies.float())
    angles = torch.cat((angles, angles), dim=-1)
    return Rope((angles.cos() * scale).to(device), (angles.sin() * scale).to(device))


def rope_frequencies(config: Qwen3Config) -> tuple[torch.Tensor, float]:
    """Radians per position, float64 ``[head_dim / 2]``, and the factor on cos and sin.

    With YaRN (arXiv 2309.00071), slow dimensions are interpolated by ``factor``, fast ones kept,
    and those that turn 1 to 32 times within the original context are blended in between.
    """
    half = config.head_dim // 2
    exponents = torch.arange(half, dtype=torch.float64) / half
    frequencies = config.rope_theta**-exponents
    if config.yarn is None:
        return frequencies, 1.0

    context = config.yarn.original_max_position_embeddings

    def dimension(turns: float) -> float:
        """The dimension that turns so many times within the original context."""
        return half * math.log(context / (turns * 2 * math.pi)) / math.log(config.rope_theta)

    low = max(math.floor(dimension(32)), 0)
    high = min(math.ceil(dimension(1)), config.head_dim - 1)
    ramp = (torch.arange(half, dtype=torch.float64) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    blended = frequencies * (1 - interpolated + interpolated / config.yarn.factor)
    return blended, 0.1 * math.log(config.yarn.factor) + 1 if config.yarn.factor > 1 else 1.0
