"""Causal attention in blocks, against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from qwen3q.models import attention
from qwen3q.models.attention import grouped_attention


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    n = q.shape[2]
    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "n"),
    [(1, 8, 2, 512), (3, 4, 4, 65), (2, 20, 1, 130), (5, 6, 3, 7), (1, 2, 1, 1), (1, 4, 2, 1100)],
)
def test_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    heads: int,
    kv_heads: int,
    n: int,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(attention, "slow_mkl", lambda: True)
    generator = torch.Generator().manual_seed(n)

    def values(count: int) -> torch.Tensor:
        made = torch.randn(rows, n, count, 64, generator=generator)
        return made.to(dtype).transpose(1, 2)

    q, k, v = 2 * values(heads), values(kv_heads), values(kv_heads)
    made = grouped_attention(q, k, v, causal=True)
    assert made.dtype == dtype
    exact = by_definition(q.double(), k.double(), v.double())
    error = (made - exact).norm() / exact.norm()
    assert error < (1e-6 if dtype == torch.float32 else 2**-8)


def test_no_token_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "slow_mkl", lambda: True)
    q, k, v = (torch.randn(1, 4, 200, 64) for _ in range(3))
    made = grouped_attention(q, k, v, causal=True)
    k[:, :, 150:], v[:, :, 150:] = torch.nan, torch.nan
    assert torch.equal(grouped_attention(q, k, v, causal=True)[:, :, :128], made[:, :, :128])
