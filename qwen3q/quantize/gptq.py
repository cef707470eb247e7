"""GPTQ: round input channels one after the other, and let later ones make up for the error.

Frantar et al., arXiv 2210.17323, in the form of LDLQ (Chee et al., arXiv 2307.13304): with the
Hessian ``H = L L^T``, the output error of ``E = W - W_q`` is ``sum_j |(E L)_j|^2``, and its j-th
term holds errors of channels ``j ..`` only. So from the last channel to the first, channel j is
rounded at ``w_j + sum_{i>j} E_i L_ij / L_jj``. No inverse is needed.

Shapes are ``[batch, in, out]``: a batch is the experts of a layer, or one linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.rtn import Grid, Rounded, search_range, stack_grids

MAX_DAMPING = 1.0
BLOCK = 128
"""Channels whose errors reach later blocks in one product (the paper's lazy batch)."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A Hessian, its channels ordered so that the last is rounded first.

    Attributes:
        order: int64 ``[batch, in]``; channels of one group stand together, so ``g_idx`` stays
            what it is without reordering (GAR, arXiv 2505.14638).
        hessian: float32 ``[batch, in, in]``, ordered and damped.
        lower: its Cholesky factor.
        damping: share of the mean diagonal that was added, per batch entry; NaN where nothing up
            to ``MAX_DAMPING`` made it factor, and that entry's ``lower`` is meaningless.
    """

    order: torch.Tensor
    hessian: torch.Tensor
    lower: torch.Tensor
    damping: tuple[float, ...]

    def to(self, device: str | torch.device) -> Factor:
        return Factor(
            self.order.to(device), self.hessian.to(device), self.lower.to(device), self.damping
        )

    def ordered(self, values: torch.Tensor) -> torch.Tensor:
        """``[batch, in, out]`` in this order."""
        return values.gather(1, self.order[..., None].expand_as(values))

    def restored(self, values: torch.Tensor) -> torch.Tensor:
        """``[batch, in, out]`` back in the checkpoint's order."""
        order = self.order[..., None].expand_as(values)
        return torch.empty_like(values).scatter_(1, order, values)

    def restored_groups(self, values: torch.Tensor) -> torch.Tensor:
        """``[batch, groups, out]`` back in the checkpoint's order."""
        size = self.order.shape[1] // values.shape[1]
        order = (self.order[:, ::size] // size)[..., None].expand_as(values)
        return torch.empty_like(values).scatter_(1, order, values)

    def pivots(self) -> torch.Tensor:
        """``L_jj^2`` in the checkpoint's order, ``[batch, in]``: what an error on a channel costs
        when the channels rounded after it make up for it."""
        squares = self.lower.diagonal(dim1=1, dim2=2).square()
        return torch.empty_like(squares).scatter_(1, self.order, squares)


def factorize(hessian: torch.Tensor, group_size: int, damping: float) -> Factor:
    """Orders, damps and factors ``[batch, in, in]`` Hessians; overwrites them.

    Damping starts at ``damping`` times the mean of the diagonal and grows tenfold until the
    Cholesky factorization succeeds.
    """
    order = group_order(hessian.diagonal(dim1=1, dim2=2), group_size).flip(1)
    lower = torch.empty_like(hessian)
    used = []
    for b, matrix in enumerate(hessian):
        matrix.copy_(matrix[order[b]])
        matrix.copy_(matrix[:, order[b]])
        used.append(_factor_one(matrix, lower[b], damping))
    return Factor(order, hessian, lower, tuple(used))


def unfactored(hessian: torch.Tensor) -> Factor:
    """Hessians in their own order and undamped, for algorithms that need no factor."""
    batch, columns, _ = hessian.shape
    order = torch.arange(columns, device=hessian.device).expand(batch, columns)
    return Factor(order, hessian, hessian, (0.0,) * batch)


def _factor_one(matrix: torch.Tensor, lower: torch.Tensor, damping: float) -> float:
    """Damps ``matrix`` and factors it into ``lower``; the share that was needed, or NaN."""
    mean = float(matrix.diagonal().mean())
    added, share = 0.0, damping
    while 0 < mean < float("inf") and share <= MAX_DAMPING:
        matrix.diagonal().add_((share - added) * mean)
        added = share
        info = torch.empty((), dtype=torch.int32, device=matrix.device)
        torch.linalg.cholesky_ex(matrix, out=(lower, info))
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            return share
        share = max(share * 10, 1e-4)
    return float("nan")


def group_order(diagonal: torch.Tensor, group_size: int) -> torch.Tensor:
    """Groups by their largest diagonal entry, and channels within a group, both descending.

    Args:
        diagonal: ``[batch, in]``.

    Returns:
        A permutation ``[batch, in]``.
    """
    grouped = diagonal.view(len(diagonal), -1, group_size)
    within = grouped.argsort(dim=2, descending=True, stable=True)
    groups = grouped.amax(2).argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(grouped.shape[1], device=diagonal.device) * group_size
    channels = within + starts[:, None]
    return channels.gather(1, groups[..., None].expand_as(channels)).flatten(1)


def gptq(weights: torch.Tensor, factor: Factor, scheme: Scheme) -> Rounded:
    """Rounds ``weights`` to the scheme's grid with error feedback, all in the factor's order.

    A group's range is searched when its turn comes, on weights that make up for earlier errors,
    each channel weighted by what an error there still costs (``L_jj^2``).

    Args:
        weights: float32 ``[batch, in, out]``, the target.
    """
    columns = weights.shape[1]
    size = scheme.group_of(columns)
    block = min(size, BLOCK)
    pivots = factor.lower.diagonal(dim1=1, dim2=2)
    steps, errors = torch.empty_like(weights), torch.empty_like(weights)
    grids: list[Grid] = []
    for start in reversed(range(0, columns, block)):
        stop = min(start + block, columns)
        feedback = factor.lower[:, :, start:stop] / pivots[:, None, start:stop]
        due = weights[:, start:stop]
        if stop < columns:
            due = due + feedback[:, stop:].mT @ errors[:, stop:]
        if stop % size == 0:
            values = weights
            if size == block:
                values = _expected(due, weights[:, start:stop], feedback[:, start:stop])
            costs = pivots[:, stop - size : stop].square()
            grids.insert(0, search_range(values, costs, scheme))
        _round_block(due, weights, feedback, steps, errors, grids[0], start)
    return Rounded(steps, *stack_grids(grids))


def _expected(due: torch.Tensor, weights: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """What a group's channels will be rounded at, if those before them round without error.

    Moving a channel to make up for earlier groups is felt by the group's later ones in turn.
    """
    shifts: torch.Tensor = torch.linalg.solve_triangular(
        within.mT, weights - due, upper=True, unitriangular=True
    )
    return weights - shifts


def _round_block(
    due: torch.Tensor,
    weights: torch.Tensor,
    feedback: torch.Tensor,
    steps: torch.Tensor,
    errors: torch.Tensor,
    grid: Grid,
    start: int,
) -> None:
    """Channels from ``start`` on, last first; fills their ``steps`` and ``errors``.

    Args:
        due: ``[batch, block, out]``, these channels with all later blocks' errors.
        feedback: ``[batch, in, block]``, ``L_ij / L_jj`` for these channels j.
    """
    scales, (low, high) = grid.scales, grid.bounds
    stop = start + due.shape[1]
    for j in reversed(range(start, stop)):
        value = due[:, j - start]
        if j + 1 < stop:
            pull = feedback[:, j + 1 : stop, j - start].unsqueeze(1)
            value = torch.baddbmm(value.unsqueeze(1), pull, errors[:, j + 1 : stop])[:, 0]
        step = (value / scales).round_().clamp_(low, high)
        steps[:, j] = step
        errors[:, j] = torch.addcmul(weights[:, j], step, scales, value=-1)
