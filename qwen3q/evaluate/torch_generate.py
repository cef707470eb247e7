"""Decoding in torch with a KV cache, all layers in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qwen3q.evaluate.input_rounding import Rounding
from qwen3q.evaluate.sampling import GREEDY, Sampling, choose, uniforms
from qwen3q.models.config import Qwen3Config
from qwen3q.models.decoder import (
    O_PROJ,
    QKV,
    Linear,
    Rope,
    Weights,
    mlp,
    rms_norm,
    rope_table,
    rotate,
    split_heads,
)

Layer = tuple[Weights, Linear]
Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, ``[sequences, kv_heads, length, head_dim]``."""


_PIECE = 256
"""Tokens read at a time behind a cache."""


class CachedModel:
    """A whole model, for generating token by token."""

    def __init__(
        self,
        config: Qwen3Config,
        embedding: torch.Tensor,
        layers: Sequence[Layer],
        norm: torch.Tensor,
        head: torch.Tensor,
        head_rounding: Rounding | None = None,
    ) -> None:
        self._config = config
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._head_rounding = head_rounding
        self._read: list[int] = []
        self._cache: Cache = []

    @property
    def weight_bytes(self) -> int:
        """Of all tensors; a head that is the embedding counts once."""
        tensors = [self._embedding, self._norm, self._head]
        tensors += [tensor for weights, _ in self._layers for tensor in weights.values()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        stop_tokens: frozenset[int],
        sampling: Sampling = GREEDY,
    ) -> list[int]:
        """The continuation up to a stop token, which is left out.

        A beginning that the prompt shares with what was read before is not computed again, if it is
        at least half of it.
        """
        rope = rope_table(self._config, len(prompt) + max_tokens, self._embedding.device)
        logits, cache = self._prefill(list(prompt), rope)
        out: list[int] = []
        for uniform in uniforms(sampling.seed):
            token = choose(logits, sampling, uniform, out)
            if token in stop_tokens:
                break
            out.append(token)
            if len(out) == max_tokens:
                break
            logits = self._step([token], len(prompt) + len(out) - 1, rope, cache)
        self._read, self._cache = [*prompt, *out][: cache[0][0].shape[2]], cache
        return out

    def _prefill(self, prompt: list[int], rope: Rope) -> tuple[NDArray[np.float32], Cache]:
        """The logits after ``prompt``, and the cache that holds it."""
        # the last token is always computed, for its logits
        kept = min(_common_prefix(self._read, prompt), len(prompt) - 1)
        if 2 * kept < len(prompt):
            cache: Cache = []
            return self._step(prompt, 0, rope, cache), cache
        cache = [(k[:, :, :kept], v[:, :, :kept]) for k, v in self._cache]
        # attention over a cache has a mask, whose memory grows with the piece
        for position in range(kept, len(prompt), _PIECE):
            logits = self._step(prompt[position : position + _PIECE], position, rope, cache)
        return logits, cache

    def _step(
        self, tokens: list[int], position: int, rope: Rope, cache: Cache
    ) -> NDArray[np.float32]:
        """Reads ``tokens`` at ``position``; the logits after the last, float32 ``[vocabulary]``."""
        ids = torch.tensor([tokens], device=self._embedding.device)
        return self.step(ids, position, rope, cache)[0].float().cpu().numpy()

    @torch.inference_mode()
    def step(self, ids: torch.Tensor, position: int, rope: Rope, cache: Cache) -> torch.Tensor:
        """Reads the next tokens of several sequences, which are equally long.

        Args:
            ids: int64 ``[sequences, n]``.
            position: tokens that the cache has; it is empty for 0.
            rope: of all positions that will be read.

        Returns:
            The logits after each sequence's last token, ``[sequences, vocabulary]``.
        """
        hidden = F.embedding(ids, self._embedding)
        count = ids.shape[1]
        here = slice(position, position + count)
        window = Rope(rope.cos[here], rope.sin[here])
        mask = None
        if position and count > 1:
            shape = (count, position + count)
            mask = torch.ones(shape, dtype=torch.bool, device=ids.device).tril(position)
        eps = self._config.rms_norm_eps
        for index, (weights, linear) in enumerate(self._layers):
            x = rms_norm(hidden, weights["input_layernorm"], eps)
            q, k, v = (split_heads(linear(name, x), self._config.head_dim) for name in QKV)
            q = rotate(rms_norm(q, weights["self_attn.q_norm"], eps), window)
            k = rotate(rms_norm(k, weights["self_attn.k_norm"], eps), window)
            if position == 0:
                cache.append((k, v))
            else:
                k, v = torch.cat((cache[index][0], k), 2), torch.cat((cache[index][1], v), 2)
                cache[index] = (k, v)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=position == 0, enable_gqa=True
            )
            hidden = hidden + linear(O_PROJ, mixed.transpose(1, 2).flatten(2))
            hidden = hidden + mlp(hidden, weights, self._config, linear)
        last = rms_norm(hidden[:, -1], self._norm, eps)
        if self._head_rounding is not None:
            last = self._head_rounding(last)
        return F.linear(last, self._head)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
