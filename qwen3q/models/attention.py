"""Attention over heads that share keys and values in groups (GQA), by the fastest kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from qwen3q.models.products import slow_mkl

_SHORT = 1024
"""Tokens of a row up to which torch's own kernel, which multiplies small blocks by MKL, loses."""
_BLOCK = 64
"""Queries that meet all keys before them in one product."""
_SCORES = 1024
"""Rows of scores that are made at a time: few enough to stay in a core's cache."""


def grouped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
) -> torch.Tensor:
    """Attention whose heads share keys and values in groups.

    On GPUs, float32 keys and values are repeated for every head: torch's kernels that make scores
    a part at a time know groups of 16-bit heads, but not in every version of float32 ones, and all
    scores of 32,768 tokens at once would be 4 GiB per head.

    Args:
        q: ``[rows, heads, n, head_dim]``.
        k, v: ``[rows, kv_heads, length, head_dim]``.
        mask: bool ``[n, length]``, where to look; instead of ``causal``.
        causal: query i looks at keys up to i.
    """
    if causal and q.device.type == "cpu" and k.shape[2] == q.shape[2] <= _SHORT and slow_mkl():
        return in_blocks(q, k, v)
    groups = q.shape[1] // k.shape[1]
    if k.device.type != "cpu" and k.dtype == torch.float32 and groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1]
    )


def in_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention as batched products, a block of queries at a time.

    Scores and their softmax are float32; they are rounded to ``v``'s dtype to mix the values.

    Args:
        q: ``[rows, heads, n, head_dim]``.
        k, v: ``[rows, kv_heads, n, head_dim]``.
    """
    n, head_dim = q.shape[2:]
    groups = q.shape[1] // k.shape[1]
    padding = (0, 0, 0, -n % _BLOCK)  # by tokens after all others, so that shapes are few
    q, k, v = (F.pad(x, padding) if padding[-1] else x for x in (q, k, v))
    queries = (q.float() * head_dim**-0.5).unflatten(1, (-1, groups)).flatten(0, 1)
    keys, values = k.float().flatten(0, 1).mT, v.flatten(0, 1)
    out = torch.empty(queries.shape, dtype=v.dtype)
    later = torch.full((_BLOCK, _BLOCK), -math.inf).triu_(1)
    at_once = max(1, _SCORES // (groups * _BLOCK))
    for first in range(0, len(keys), at_once):
        part = slice(first, first + at_once)
        for start in range(0, q.shape[2], _BLOCK):
            end = start + _BLOCK
            scores = queries[part, :, start:end].flatten(1, 2) @ keys[part, :, :end]
            scores.unflatten(1, (groups, _BLOCK))[..., start:] += later
            shares = scores.softmax(-1).to(v.dtype)
            mixed = shares @ values[part, :end]
            out[part, :, start:end] = mixed.unflatten(1, (groups, _BLOCK))
    return out.view(q.shape)[:, :, :n]
