"""Decoding in torch with a KV cache, all layers in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qwen3q.evaluate.input_rounding import Rounding
from qwen3q.evaluate.residence import PackedLayer
from qwen3q.models.attention import grouped_attention
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
from qwen3q.models.products import product
from qwen3q.prefix import common_prefix

Layer = tuple[Weights, Linear]

_PIECE = 256
"""Tokens read at a time behind a cache."""

_HEAD = 16384
"""Rows of a packed head that are unpacked at a time."""

_ROOM = 256
"""Tokens that a cache has room for at first."""


class KVCache:
    """The keys and values of one sequence in every layer; room for them doubles when it is full."""

    def __init__(self, layers: int, room: int = _ROOM) -> None:
        self.length = 0
        self._room = room
        self._held: list[torch.Tensor | None] = [None] * layers

    @property
    def nbytes(self) -> int:
        """What is allocated."""
        return sum(held.nbytes for held in self._held if held is not None)

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts those of the next tokens, ``[kv_heads, n, head_dim]``, behind ``length``.

        Returns:
            Keys and values of all tokens, ``[1, kv_heads, length + n, head_dim]``; views.
        """
        end = self.length + keys.shape[1]
        held = self._held[layer]
        if held is None or held.shape[2] < end:
            self._room = max(self._room, 2 * end if self.length else end)
            grown = keys.new_empty(2, keys.shape[0], self._room, keys.shape[2])
            if held is not None:
                grown[:, :, : self.length] = held[:, :, : self.length]
            self._held[layer] = held = grown
        held[0, :, self.length : end] = keys
        held[1, :, self.length : end] = values
        return held[:1, :, :end], held[1:, :, :end]

    def take(self, other: KVCache, length: int) -> None:
        """Holds the first ``length`` tokens of ``other``, and nothing else."""
        self.length = 0
        if other is not self:
            for layer, held in enumerate(other._held):
                assert held is not None
                self.extend(layer, held[0, :, :length], held[1, :, :length])
        self.length = length


class CachedModel:
    """A whole model, for reading token by token."""

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
        self._rope = rope_table(config, 0, embedding.device)

    @property
    def device(self) -> torch.device:
        return self._embedding.device

    @property
    def weight_bytes(self) -> int:
        """Of all tensors as they lie in memory; a head that is the embedding counts once."""
        tables = [self._embedding, self._norm]
        if self._head is not self._embedding:
            tables.append(self._head)
        layers = sum(_weight_bytes(weights) for weights, _ in self._layers)
        return layers + sum(table.nbytes for table in tables)

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a cache: float32 keys and values of every layer."""
        return 2 * 4 * self._config.kv_size * len(self._layers)

    def cache(self, room: int = _ROOM) -> KVCache:
        """An empty one for this model, with room for so many tokens at first, and their angles."""
        self._cover(room)
        return KVCache(len(self._layers), room)

    @torch.inference_mode()
    def step(self, ids: torch.Tensor, caches: Sequence[KVCache]) -> torch.Tensor:
        """Reads the next tokens of several sequences.

        Args:
            ids: int64 ``[sequences, n]``.
            caches: of each sequence; they grow by n tokens.

        Returns:
            The logits after each sequence's last token, ``[sequences, vocabulary]``.
        """
        count = ids.shape[1]
        window = self._window([cache.length for cache in caches], count)
        masks = [_mask(count, cache.length, ids.device) for cache in caches]
        eps = self._config.rms_norm_eps
        hidden = F.embedding(ids, self._embedding).float()
        for index, (weights, linear) in enumerate(self._layers):
            x = rms_norm(hidden, weights["input_layernorm"], eps)
            q, k, v = (split_heads(linear(name, x), self._config.head_dim) for name in QKV)
            q = rotate(rms_norm(q, weights["self_attn.q_norm"], eps), window)
            k = rotate(rms_norm(k, weights["self_attn.k_norm"], eps), window)
            mixed = torch.empty_like(q)
            for row, (cache, mask) in enumerate(zip(caches, masks, strict=True)):
                keys, values = cache.extend(index, k[row], v[row])
                mixed[row] = _attention(q[row, None], keys, values, mask)[0]
            hidden = hidden + linear(O_PROJ, mixed.transpose(1, 2).flatten(2))
            hidden = hidden + mlp(hidden, weights, self._config, linear)
        for cache in caches:
            cache.length += count
        last = rms_norm(hidden[:, -1], self._norm, eps)
        if self._head_rounding is not None:
            last = self._head_rounding(last)
        if self._head.dtype == torch.float32:
            return product(last, self._head)
        parts = range(0, len(self._head), _HEAD)
        made = [product(last, self._head[start : start + _HEAD].float()) for start in parts]
        return torch.cat(made, -1)

    def read(self, tokens: Sequence[int], cache: KVCache) -> torch.Tensor:
        """Reads ``tokens`` behind what ``cache`` has; the logits after the last, ``[1, vocab]``."""
        # attention over a cache has a mask, whose memory grows with the piece
        piece = _PIECE if cache.length else len(tokens)
        for start in range(0, len(tokens), piece):
            ids = torch.tensor([tokens[start : start + piece]], device=self.device)
            logits = self.step(ids, [cache])
        return logits

    def _window(self, starts: Sequence[int], count: int) -> Rope:
        """Angles of ``count`` positions of each sequence, ``[sequences, 1, count, head_dim]``."""
        longest = max(starts) + count
        if longest > len(self._rope.cos):
            self._cover(2 * longest)
        at = (torch.tensor(starts)[:, None] + torch.arange(count)).to(self.device)
        return Rope(self._rope.cos[at].unsqueeze(1), self._rope.sin[at].unsqueeze(1))

    def _cover(self, positions: int) -> None:
        """Has the angles of so many positions, before a timed step could make them."""
        if positions > len(self._rope.cos):
            self._rope = rope_table(self._config, positions, self.device)


class TorchSlots:
    """Sequences of a ``CachedModel`` that are continued side by side."""

    def __init__(self, model: CachedModel, count: int) -> None:
        self.count = count
        self._model = model
        self._caches = [model.cache() for _ in range(count)]
        self._held: list[list[int]] = [[] for _ in range(count)]

    def held(self, slot: int) -> Sequence[int]:
        """As ``Slots.held``."""
        return self._held[slot]

    @torch.inference_mode()
    def read(self, slot: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As ``Slots.read``.

        A beginning that any slot has read is not computed again, if it is at least half.
        """
        shared = [common_prefix(held, tokens) for held in self._held]
        source = max(range(self.count), key=lambda other: (shared[other], other == slot))
        # the last token is always computed, for its logits
        kept = min(shared[source], len(tokens) - 1)
        if 2 * kept < len(tokens):
            source, kept = slot, 0
        self._caches[slot].take(self._caches[source], kept)
        logits = self._model.read(tokens[kept:], self._caches[slot])
        self._held[slot] = list(tokens)
        return _numpy(logits[0])

    @torch.inference_mode()
    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """As ``Slots.step``."""
        ids = torch.tensor(tokens)[:, None].to(self._model.device)
        logits = self._model.step(ids, [self._caches[slot] for slot in slots])
        for slot, token in zip(slots, tokens, strict=True):
            self._held[slot].append(token)
        return _numpy(logits)


def _weight_bytes(weights: Weights) -> int:
    if isinstance(weights, PackedLayer):
        return weights.nbytes
    return sum(tensor.nbytes for tensor in weights.values())


def _attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Of the last tokens of one sequence, ``[1, heads, n, head_dim]``."""
    if q.shape[2] == 1:
        # torch's own reads keys and values once per head, and this once per group of heads
        groups = q.view(1, keys.shape[1], -1, q.shape[3]) * q.shape[3] ** -0.5
        mixed = torch.matmul((groups @ keys.mT).softmax(-1), values)
        return mixed.view_as(q)
    return grouped_attention(q, keys, values, mask, causal=q.shape[2] == keys.shape[2])


def _mask(count: int, start: int, device: torch.device) -> torch.Tensor | None:
    """What each of ``count`` tokens behind ``start`` others may look at; None where plain."""
    if start == 0 or count == 1:
        return None
    return torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)


def _numpy(logits: torch.Tensor) -> NDArray[np.float32]:
    return logits.float().cpu().numpy()
