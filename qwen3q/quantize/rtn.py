"""Round to nearest on a grid whose range is searched: the base of every other algorithm.

Weights come here as ``[batch, in, out]``: one input channel is one contiguous row, which is what
column-wise algorithms walk over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qwen3q.plan.schemes import Scheme

RANGE_STEP = 0.04
COARSE_RANGES = tuple(1 - i * RANGE_STEP for i in range(-1, 13))
FINE_RANGES = tuple(i * RANGE_STEP / 5 for i in range(-4, 5) if i)
_AT_ONCE = 1 << 18
"""Weights that are rounded at a time: what is made of them stays in a core's cache."""
SMALLEST_SCALES = {"float16": 2.0**-24, "bfloat16": 2.0**-100}
"""float16's smallest number, and one that bfloat16 has far below any weight."""
EMPTY_SCALES = {"float16": 2.0**-20, "bfloat16": 2.0**-100}
"""What a group of zeros gets."""
SIGNED_SCALE_BITS = 4
"""Up to this width a symmetric scale takes the sign that gives the larger side the extra code."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero of each output channel for one group of inputs, ``[batch, out]`` each.

    Attributes:
        scales: float32, rounded to the layout's dtype; never 0.
        zeros: float32 whole numbers.
        levels: the largest code.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    levels: int

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Smallest and largest steps, ``[batch, out]``."""
        return -self.zeros, self.levels - self.zeros

    def steps(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest steps of a group ``[batch, in, out]``."""
        low, high = self.bounds
        steps = (values / self.scales.unsqueeze(1)).round_()
        return steps.clamp_(low.unsqueeze(1), high.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights on grids.

    Attributes:
        steps: ``code - zero``, float32 whole numbers ``[batch, in, out]``.
        scales, zeros: float32 ``[batch, groups, out]``.
    """

    steps: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def codes(self) -> torch.Tensor:
        """What a layout stores, float32 ``[batch, in, out]``."""
        return (self._grouped() + self.zeros.unsqueeze(2)).view_as(self.steps)

    def values(self) -> torch.Tensor:
        """The weights, ``[batch, in, out]``."""
        return (self._grouped() * self.scales.unsqueeze(2)).view_as(self.steps)

    def _grouped(self) -> torch.Tensor:
        batch, _, out = self.steps.shape
        return self.steps.view(batch, self.scales.shape[1], -1, out)


def round_to_nearest(
    weights: torch.Tensor, importance: torch.Tensor, scheme: Scheme, *, search: bool = True
) -> Rounded:
    """Quantizes without regard to correlations between inputs.

    Args:
        weights: float32 ``[batch, in, out]``.
        importance: ``[batch, in]``, such as the inputs' mean squares: what an error costs.
        search: fit each group's range; otherwise it spans the extreme weights.
    """
    batch, columns, out = weights.shape
    size = scheme.group_of(columns)
    grouped = weights.reshape(-1, size, out)
    costs = importance.reshape(-1, size)
    steps = torch.empty_like(grouped)
    grids = []
    for start in range(0, len(grouped), step := max(1, _AT_ONCE // (size * out))):
        part = slice(start, start + step)
        values = grouped[part]
        grid = search_range(values, costs[part], scheme) if search else full_range(values, scheme)
        steps[part] = grid.steps(values)
        grids.append(grid)
    scales = torch.cat([grid.scales for grid in grids]).view(batch, -1, out)
    zeros = torch.cat([grid.zeros for grid in grids]).view(batch, -1, out)
    return Rounded(steps.view_as(weights), scales, zeros)


def stack_grids(grids: Sequence[Grid]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of all groups, ``[batch, groups, out]``."""
    return torch.stack([g.scales for g in grids], 1), torch.stack([g.zeros for g in grids], 1)


def full_range(values: torch.Tensor, scheme: Scheme) -> Grid:
    """The grid that spans a group's extreme weights, as plain round-to-nearest takes it."""
    levels = 2**scheme.bits - 1
    low, high = values.amin(-2).clamp_(max=0), values.amax(-2).clamp_(min=0)
    if scheme.symmetric:
        scales = round_scale(2 * torch.maximum(-low, high) / levels, scheme)
        return Grid(scales, torch.full_like(scales, (levels + 1) // 2), levels)
    scales = round_scale((high - low) / levels, scheme)
    return Grid(scales, (-low / scales).round_().clamp_(scheme.min_zero, levels), levels)


def search_range(values: torch.Tensor, importance: torch.Tensor, scheme: Scheme) -> Grid:
    """The grid with the least importance-weighted squared rounding error for one group.

    Ranges between half and all of the extreme weights' are tried, first in coarse steps, then
    finely around each output's best. The full range itself is among them.

    Args:
        values: ``[batch, group, out]``.
        importance: ``[batch, group]``, not negative.
    """
    best = full_range(values, scheme)
    scales, zeros = best.scales, best.zeros
    error = _weighted_error(values, importance, best)
    ratios = torch.ones_like(error)
    extremes = values.amin(-2).clamp_(max=0), values.amax(-2).clamp_(min=0)
    for shifts in (COARSE_RANGES, FINE_RANGES):
        tried = values.new_tensor(shifts)[:, None, None]
        tried = (tried + ratios if shifts is FINE_RANGES else tried).expand(-1, *error.shape)
        grids = _grids(extremes, tried, scheme)
        trials = [_weighted_error(values, importance, grid) for grid in _each(grids)]
        least, index = torch.stack(trials).min(0, keepdim=True)
        better = least[0] < error
        error = torch.where(better, least[0], error)
        ratios = torch.where(better, tried.gather(0, index % len(shifts))[0], ratios)
        scales = torch.where(better, grids.scales.gather(0, index)[0], scales)
        zeros = torch.where(better, grids.zeros.gather(0, index)[0], zeros)
    return Grid(scales, zeros, best.levels)


def _each(grids: Grid) -> Iterator[Grid]:
    """Candidates one by one, of scales and zeros that are stacked."""
    for scales, zeros in zip(grids.scales, grids.zeros, strict=True):
        yield Grid(scales, zeros, grids.levels)


def round_scale(scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Rounds to the layout's scale dtype, clear of 0 and infinity."""
    dtype = getattr(torch, scheme.scale_dtype)
    smallest, empty = SMALLEST_SCALES[scheme.scale_dtype], EMPTY_SCALES[scheme.scale_dtype]
    sign = torch.where(scales < 0, -1.0, 1.0)
    sizes = scales.abs().clamp(smallest, torch.finfo(dtype).max).to(dtype).float()
    return sign * torch.where(scales == 0, empty, sizes)


def _weighted_error(values: torch.Tensor, importance: torch.Tensor, grid: Grid) -> torch.Tensor:
    off = torch.addcmul(values, grid.steps(values), grid.scales.unsqueeze(1), value=-1).square_()
    return torch.matmul(importance.unsqueeze(-2), off).squeeze(-2)


def _grids(
    extremes: tuple[torch.Tensor, torch.Tensor], ratios: torch.Tensor, scheme: Scheme
) -> Grid:
    """Grids whose ranges are ``ratios`` ``[tried, batch, out]`` of the extreme weights' range.

    Returns:
        Scales and zeros stacked; with asymmetric zeros twice as many, each rounded down and up.
    """
    low, high = extremes
    levels = 2**scheme.bits - 1
    if scheme.symmetric:
        half = (levels + 1) // 2
        largest = torch.maximum(-low, high) * ratios
        if scheme.bits <= SIGNED_SCALE_BITS:
            scales = torch.where(high > -low, -largest, largest) / half
        else:
            scales = largest / (half - 1)
        scales = round_scale(scales, scheme)
        return Grid(scales, torch.full_like(scales, half), levels)
    scales = round_scale((high - low) * ratios / levels, scheme)
    middle = (levels - (high + low) / scales) / 2
    zeros = torch.cat((middle.floor(), middle.ceil())).clamp_(scheme.min_zero, levels)
    return Grid(scales.repeat(2, 1, 1), zeros, levels)
