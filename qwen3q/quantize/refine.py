"""Coordinate descent on codes and scales under the full Hessian, after any rounding.

GPTQ never looks back: a channel can't make up for errors of later ones. Here each group's scale
and then each of its codes takes its best value with everything else fixed (cyclic coordinate
descent, as in QuantEase, Behdin et al., arXiv 2309.01885), so the error only falls.
"""

from __future__ import annotations

import torch

from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.gptq import BLOCK, Factor, round_in_turn
from qwen3q.quantize.rtn import Grid, Rounded, round_scale

_LEAST_CURVATURE = 2.0**-49
"""Times the smallest scale it is still above 0 in float32."""
_CURVATURE_NOISE = 1e-6
"""Of a group's curvature if its inputs were uncorrelated: less is no more than rounding of sums."""
_MOST_CHANGE = 0.5
"""Of a scale in one sweep. Few tokens may want far more, and weights that suit no other token."""


def refine(
    target: torch.Tensor,
    factor: Factor,
    rounded: Rounded,
    scheme: Scheme,
    sweeps: int,
) -> Rounded:
    """Lowers ``tr(E^T H E)``, ``E = rounded - target``.

    Args:
        target: float32 ``[batch, in, out]``, in the factor's order.
        factor: holds H, with its ``diagonal``.
        sweeps: passes over all channels; 0 leaves all as it is.
    """
    columns = target.shape[1]
    size = scheme.group_of(columns)
    block = min(size, BLOCK)
    levels = 2**scheme.bits - 1
    steps, scales = rounded.steps.clone(), rounded.scales.clone()
    errors = rounded.values().sub_(target)
    for _ in range(sweeps):
        for start in range(0, columns, block):
            part, group = slice(start, start + block), start // size
            slope = factor.slopes(errors, start, start + block)
            local = factor.block(start, start + block)
            if block == size:
                change = _scale_change(steps[:, part], slope, local, scales[:, group], scheme)
                scales[:, group] += change
                moved = steps[:, part] * change.unsqueeze(1)
                errors[:, part] += moved
                slope += local @ moved
            grid = Grid(scales[:, group], rounded.zeros[:, group], levels)
            errors[:, part] += _descend(steps[:, part], slope, local, grid)
    return Rounded(steps, scales, rounded.zeros)


def _scale_change(
    steps: torch.Tensor,
    slope: torch.Tensor,
    local: torch.Tensor,
    scales: torch.Tensor,
    scheme: Scheme,
) -> torch.Tensor:
    """The change of one group's scales ``[batch, out]`` that lowers the error most, within
    ``_MOST_CHANGE``, or 0."""
    gain = (steps * slope).sum(1)
    alone = (local.diagonal(dim1=1, dim2=2).unsqueeze(1) @ steps.square()).squeeze(1)
    curvature = (steps * (local @ steps)).sum(1)
    curvature = curvature.maximum(_CURVATURE_NOISE * alone).clamp_(min=1e-30)
    most = _MOST_CHANGE * scales.abs()
    change = round_scale(scales - (gain / curvature).clamp(-most, most), scheme) - scales
    return torch.where(change * (2 * gain + change * curvature) < 0, change, 0.0)


def _descend(
    steps: torch.Tensor, slope: torch.Tensor, local: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Each step of one block to its best value in turn; changes ``steps``.

    Args:
        slope: ``H E`` of the block's channels; local: ``H`` among them.

    Returns:
        What the block's weights changed by.
    """
    scales = grid.scales.unsqueeze(1)
    curvatures = local.diagonal(dim1=1, dim2=2).unsqueeze(2).clamp(min=_LEAST_CURVATURE)
    best = steps - slope / (curvatures * scales)
    made, left = round_in_turn(best, steps, local / curvatures, grid)
    steps.copy_(made)
    return left.mul_(scales).neg_()
