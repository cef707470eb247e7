"""Coordinate descent on codes and scales under the full Hessian, after any rounding.

GPTQ never looks back: a channel can't make up for errors of later ones. Here each group's scale
and then each of its codes takes its best value with everything else fixed (cyclic coordinate
descent, as in QuantEase, Behdin et al., arXiv 2309.01885), so the error only falls.
"""

from __future__ import annotations

import torch

from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.gptq import BLOCK
from qwen3q.quantize.rtn import Grid, dequantize, round_scale


def refine(
    target: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    scheme: Scheme,
    sweeps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowers ``tr(E^T H E)``, ``E = dequantized - target``.

    Args:
        target, codes: float32 ``[batch, in, out]``; hessian: ``[batch, in, in]``, damped.
        scales, zeros: ``[batch, groups, out]``.
        sweeps: passes over all channels; 0 leaves all as it is.

    Returns:
        New codes and scales.
    """
    columns = target.shape[1]
    size = scheme.group_of(columns)
    block = min(size, BLOCK)
    codes, scales = codes.clone(), scales.clone()
    errors = dequantize(codes, scales, zeros).sub_(target)
    for _ in range(sweeps):
        for start in range(0, columns, block):
            part, group = slice(start, start + block), start // size
            slope = hessian[:, part] @ errors
            local = hessian[:, part, part]
            if block == size:
                offsets = codes[:, part] - zeros[:, group, None]
                step = _scale_step(offsets, slope, local, scales[:, group], scheme)
                scales[:, group] += step
                change = offsets.mul_(step.unsqueeze(1))
                errors[:, part] += change
                slope += local @ change
            grid = Grid(scales[:, group], zeros[:, group], 2**scheme.bits - 1)
            _descend(target[:, part], local, codes[:, part], errors[:, part], slope, grid)
    return codes, scales


def _scale_step(
    offsets: torch.Tensor,
    slope: torch.Tensor,
    local: torch.Tensor,
    scales: torch.Tensor,
    scheme: Scheme,
) -> torch.Tensor:
    """The change of one group's scales ``[batch, out]`` that lowers the error most, or 0."""
    gain = (offsets * slope).sum(1)
    curvature = (offsets * (local @ offsets)).sum(1).clamp_(min=1e-30)
    step = round_scale(scales - gain / curvature, scheme) - scales
    return torch.where(step * (2 * gain + step * curvature) < 0, step, 0.0)


def _descend(
    target: torch.Tensor,
    local: torch.Tensor,
    codes: torch.Tensor,
    errors: torch.Tensor,
    slope: torch.Tensor,
    grid: Grid,
) -> None:
    """Each code of one block to its best value in turn; changes ``codes`` and ``errors``."""
    changes = torch.zeros_like(errors)
    for j in range(errors.shape[1]):
        pull = slope[:, j]
        if j:
            pull = pull + (local[:, j : j + 1, :j] @ changes[:, :j])[:, 0]
        value = target[:, j] + errors[:, j] - pull / local[:, j, j, None]
        codes[:, j] = grid.codes(value)
        error = grid.values(codes[:, j]) - target[:, j]
        changes[:, j] = error - errors[:, j]
        errors[:, j] = error
