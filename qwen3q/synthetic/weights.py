"""Random weights at disk speed: one drawn block of normals, cut and scaled anew for every tile.

Drawing a normal for each of eight billion weights would take minutes; no quantizer can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, TensorSpec, model_tensors

Float32 = NDArray[np.float32]

EMBED_STD = 0.02
NORM_STD = 0.1
OUTLIER_GAIN = 8.0
OUTLIER_SHARE = 512
"""One input channel in this many is an outlier, and at least one."""

_BLOCK = 1 << 20
_TILE = 1 << 16
_RESIDUAL = frozenset({Role.O, Role.DOWN})
_NORMS = frozenset({Role.INPUT_NORM, Role.POST_NORM, Role.Q_NORM, Role.K_NORM, Role.FINAL_NORM})


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Draws the tensors of one model; equal seeds give equal bytes.

    Attributes:
        seed: what everything is drawn from.
        layers: decoder layers, which the layers' outputs are scaled down by.
        block: standard normals, longer than any tile.
    """

    seed: int
    layers: int
    block: Float32

    def tiles(self, number: int, spec: TensorSpec) -> Iterator[Float32]:
        """The values of tensor ``number``, some rows at a time; a tile is overwritten by the next.

        Norms are near 1. Other weights have standard deviation ``1 / sqrt(in)`` times a factor
        of the row's own, smaller where they add to the residual stream (Radford et al., 2019,
        section 2.3), and a few input channels are 8 times larger, as in trained models.
        """
        rng = np.random.default_rng([self.seed, number])
        if spec.role in _NORMS:
            yield (1 + NORM_STD * rng.standard_normal(spec.shape)).astype(np.float32)
            return
        rows, columns = spec.shape
        row_gain = rng.uniform(0.7, 1.4, (rows, 1)).astype(np.float32)
        column_std = self._column_std(spec)
        step = max(1, _TILE // columns)
        buffer = np.empty((step, columns), np.float32)
        starts = rng.integers(0, self.block.size - step * columns, -(-rows // step))
        for row, start in zip(range(0, rows, step), starts, strict=True):
            height = min(step, rows - row)
            normals = self.block[start : start + height * columns].reshape(height, columns)
            tile = np.multiply(normals, column_std, out=buffer[:height])
            tile *= row_gain[row : row + height]
            yield tile

    def _column_std(self, spec: TensorSpec) -> Float32:
        """``[in]``: standard deviation of each input channel's weights."""
        columns = spec.shape[-1]
        if spec.role is Role.EMBED:
            return np.full(columns, EMBED_STD, np.float32)
        std = np.full(columns, 1 / sqrt(columns), np.float32)
        if spec.role in _RESIDUAL:
            std /= sqrt(2 * self.layers)
        rng = np.random.default_rng([self.seed, columns])
        std[rng.integers(0, columns, max(1, columns // OUTLIER_SHARE))] *= OUTLIER_GAIN
        return std


def random_weights(config: Qwen3Config, seed: int) -> RandomWeights:
    """The weights of a model with this config."""
    widest = max(spec.shape[-1] for spec in model_tensors(config))
    size = max(_BLOCK, 2 * widest, 2 * _TILE)
    block = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    return RandomWeights(seed, config.num_hidden_layers, block)


def encode(values: Float32, dtype: str) -> memoryview:
    """The little-endian bytes of ``values`` in torch's ``dtype``; bfloat16 drops the low bits."""
    if dtype == "bfloat16":
        stored: NDArray[np.generic] = np.ascontiguousarray(values.view("<u2")[..., 1::2])
    elif dtype == "float16":
        stored = values.astype("<f2")
    else:
        stored = values.astype("<f4", copy=False)
    return stored.reshape(-1).view(np.uint8).data
