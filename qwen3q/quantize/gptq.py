"""GPTQ: round input channels one after the other, and let later ones make up for the error.

Frantar et al., arXiv 2210.17323, in the form of LDLQ (Chee et al., arXiv 2307.13304): with the
Hessian ``H = L L^T``, the output error of ``E = W - W_q`` is ``sum_j |(E L)_j|^2``, and its j-th
term holds errors of channels ``j ..`` only. So from the last channel to the first, channel j is
rounded at ``w_j + sum_{i>j} E_i L_ij / L_jj``. No inverse is needed.

Shapes are ``[batch, in, out]``: a batch is the experts of a layer, or one linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qwen3q.devices import widest_float
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.rtn import Grid, Rounded, search_range, stack_grids

MAX_DAMPING = 1.0
SHRINKAGE = 4
"""Times channels over tokens: how far a Hessian is drawn towards a diagonal one."""
MOST_SHRINKAGE = 1.0
BLOCK = 128
"""Channels whose errors reach later blocks in one product (the paper's lazy batch)."""
STRIP = 16
"""Channels of a block whose errors reach the block's others in one product."""
FACTOR_BLOCK = 512
FACTOR_ROWS = 4096
"""Columns and rows of a Cholesky factor that are made at a time."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A Hessian and its Cholesky factor in one square, channels ordered so that the last is
    rounded first.

    Attributes:
        order: int64 ``[batch, in]``; channels of one group stand together, so ``g_idx`` stays
            what it is without reordering (GAR, arXiv 2505.14638).
        square: float32 ``[batch, in, in]``: above the diagonal the ordered Hessian, on and below
            it its Cholesky factor L.
        diagonal: ``[batch, in]``, the Hessian's diagonal, shrunk and damped.
        plain: ``[batch, in]``, the same without what was added.
        damping: share of the mean diagonal that was added, per batch entry; NaN where nothing up
            to ``MAX_DAMPING`` made it factor, and that entry's L is meaningless.
    """

    order: torch.Tensor
    square: torch.Tensor
    diagonal: torch.Tensor
    plain: torch.Tensor
    damping: tuple[float, ...]

    def to(self, device: str | torch.device) -> Factor:
        return replace(
            self,
            order=self.order.to(device),
            square=self.square.to(device),
            diagonal=self.diagonal.to(device),
            plain=self.plain.to(device),
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

    @property
    def pivots(self) -> torch.Tensor:
        """``L_jj``, ``[batch, in]``."""
        return self.square.diagonal(dim1=1, dim2=2)

    def costs(self) -> torch.Tensor:
        """``L_jj^2`` in the checkpoint's order, ``[batch, in]``: what an error on a channel costs
        when the channels rounded after it make up for it."""
        squares = self.pivots.square()
        return torch.empty_like(squares).scatter_(1, self.order, squares)

    def solve(self, values: torch.Tensor) -> None:
        """Turns ``values`` ``[batch, in, columns]`` into ``H^-1 values``, a block of rows at a
        time: products are faster than triangular solves."""
        size = values.shape[1]
        parts = [
            slice(start, min(start + FACTOR_BLOCK, size)) for start in range(0, size, FACTOR_BLOCK)
        ]
        for part in parts:
            if part.start:
                values[:, part] -= self.square[:, part, : part.start] @ values[:, : part.start]
            values[:, part] = torch.linalg.solve_triangular(
                self.square[:, part, part], values[:, part], upper=False
            )
        for part in reversed(parts):
            if part.stop < size:
                values[:, part] -= self.square[:, part.stop :, part].mT @ values[:, part.stop :]
            values[:, part] = torch.linalg.solve_triangular(
                self.square[:, part, part].mT, values[:, part], upper=True
            )

    def as_it_was(self) -> Factor:
        """The same with the plain Hessian, but for channels that no token used: their curvature
        stays above zero. L is still the damped Hessian's."""
        least = 1e-6 * self.plain.mean(1, keepdim=True)
        return replace(self, diagonal=self.plain.maximum(least))

    def block(self, start: int, stop: int) -> torch.Tensor:
        """The Hessian with this diagonal among neighbours, ``[batch, stop - start, stop - start]``:
        shrunk and damped, but for ``as_it_was``."""
        above = self.square[:, start:stop, start:stop].triu(1)
        return above + above.mT + torch.diag_embed(self.diagonal[:, start:stop])

    def slopes(self, values: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``start .. stop`` of ``H values``, ``[batch, stop - start, out]``."""
        slopes = self.block(start, stop) @ values[:, start:stop]
        if stop < values.shape[1]:
            slopes += self.square[:, start:stop, stop:] @ values[:, stop:]
        if start:
            slopes += self.square[:, :start, start:stop].mT @ values[:, :start]
        return slopes

    def squared_outputs(self, weights: torch.Tensor) -> torch.Tensor:
        """Diagonal of ``W^T H W`` with the plain Hessian, ``[batch, out]`` in the widest float
        there is: mean squared outputs of ``weights`` ``[batch, in, out]``. Not negative, as sums
        that cancel in float32 would be."""
        wide = widest_float(weights.device)
        total = weights.new_zeros(weights.shape[0], weights.shape[2], dtype=wide)
        for start in range(0, weights.shape[1], FACTOR_BLOCK):
            stop = min(start + FACTOR_BLOCK, weights.shape[1])
            part = weights[:, start:stop]
            half = self.square[:, start:stop, start:stop].triu(1) @ part
            half += self.plain[:, start:stop, None] / 2 * part
            if stop < weights.shape[1]:
                half += self.square[:, start:stop, stop:] @ weights[:, stop:]
            total += half.mul_(part).sum(1, dtype=wide).mul_(2)
        return total.clamp_(min=0)


def shrinkage(columns: int, tokens: int) -> float:
    """How far a Hessian of so many channels, from so many tokens, is drawn towards a diagonal one.

    A second moment of few tokens takes chance for correlation, and error feedback would rely on
    it; drawn towards its diagonal it is closer to that of all text (Ledoit & Wolf, 2004; Schaefer
    & Strimmer, 2005). How far was measured on held-out text: ``eval/reports/shrinkage.md``.
    """
    return min(SHRINKAGE * columns / max(tokens, 1), MOST_SHRINKAGE)


def factorize(
    hessian: torch.Tensor,
    group_size: int,
    damping: float,
    shrunk_by: Sequence[float] | None = None,
) -> Factor:
    """Orders, shrinks, damps and factors ``[batch, in, in]`` Hessians, in their own memory.

    Damping starts at ``damping`` times the mean of the diagonal and grows tenfold until the
    Cholesky factorization succeeds.

    Args:
        shrunk_by: per batch entry, a share; that of the geometric mean of a channel's and the mean
            diagonal entry is added to the channel's. So loud channels, which make up most of the
            mean, don't drown the others. None for no shrinkage.
    """
    order = group_order(hessian.diagonal(dim1=1, dim2=2), group_size).flip(1)
    for matrix, channels in zip(hessian, order, strict=True):
        _reorder(matrix, channels)
    plain = hessian.diagonal(dim1=1, dim2=2).clone()
    diagonal = plain.clone()
    if shrunk_by is not None:
        shares = torch.tensor(shrunk_by, dtype=plain.dtype, device=plain.device)
        diagonal += shares[:, None] * (plain * plain.mean(1, keepdim=True)).sqrt()
    used = tuple(
        _factor_one(matrix, values, damping)
        for matrix, values in zip(hessian, diagonal, strict=True)
    )
    return Factor(order, hessian, diagonal, plain, used)


def unfactored(hessian: torch.Tensor) -> Factor:
    """Hessians in their own order and undamped, for algorithms that need no factor."""
    batch, columns, _ = hessian.shape
    order = torch.arange(columns, device=hessian.device).expand(batch, columns)
    diagonal = hessian.diagonal(dim1=1, dim2=2).clone()
    return Factor(order, hessian, diagonal, diagonal, (0.0,) * batch)


def _reorder(matrix: torch.Tensor, order: torch.Tensor) -> None:
    """``matrix[order][:, order]`` in place, some rows and then some columns at a time."""
    parts = [slice(start, start + FACTOR_BLOCK) for start in range(0, len(matrix), FACTOR_BLOCK)]
    for part in parts:
        matrix[part] = matrix[part][:, order]
    for part in parts:
        matrix[:, part] = matrix[:, part][order]


def _factor_one(matrix: torch.Tensor, diagonal: torch.Tensor, damping: float) -> float:
    """Damps and factors ``matrix`` in place; the share that was needed, or NaN.

    What is above the diagonal stays, so the next try starts from there and from ``diagonal``.
    """
    mean = float(diagonal.mean())
    added, share = 0.0, damping
    while 0 < mean < float("inf") and share <= MAX_DAMPING:
        diagonal += (share - added) * mean
        added = share
        if cholesky_below(matrix, diagonal):
            return share
        share = max(share * 10, 1e-4)
    return float("nan")


def cholesky_below(square: torch.Tensor, diagonal: torch.Tensor) -> bool:
    """Cholesky factor of one matrix, written on and below the diagonal; block by block.

    Args:
        square: ``[n, n]``; holds the matrix above the diagonal, which is left as it is.
        diagonal: ``[n]``, the matrix's diagonal.

    Returns:
        False if the matrix is not positive definite.
    """
    for start in range(0, len(square), FACTOR_BLOCK):
        stop = min(start + FACTOR_BLOCK, len(square))
        done = square[start:stop, :start]
        above = square[start:stop, start:stop].triu(1)
        block = above + above.T + diagonal[start:stop].diag()
        factor, info = torch.linalg.cholesky_ex(block - done @ done.T)
        if int(info) or not bool(torch.isfinite(factor.diagonal()).all()):
            return False
        square[start:stop, start:stop] = factor + above
        for first in range(stop, len(square), FACTOR_ROWS):
            rows = slice(first, min(first + FACTOR_ROWS, len(square)))
            panel = square[start:stop, rows].T - square[rows, :start] @ done.T
            square[rows, start:stop] = torch.linalg.solve_triangular(
                factor.T, panel, upper=True, left=False
            )
    return True


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
    pivots = factor.pivots
    steps, errors = torch.empty_like(weights), torch.empty_like(weights)
    grids: list[Grid] = []
    for start in reversed(range(0, columns, block)):
        stop = min(start + block, columns)
        within = factor.square[:, start:stop, start:stop] / pivots[:, None, start:stop]
        due = weights[:, start:stop]
        if stop < columns:
            later = factor.square[:, stop:, start:stop] / pivots[:, None, start:stop]
            due = due + later.mT @ errors[:, stop:]
        if stop % size == 0:
            values = weights
            if size == block:
                values = _expected(due, weights[:, start:stop], within)
            costs = pivots[:, stop - size : stop].square()
            grids.insert(0, search_range(values, costs, scheme))
        part = slice(start, stop)
        _round_block(due, weights[:, part], within, steps[:, part], errors[:, part], grids[0])
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
    within: torch.Tensor,
    steps: torch.Tensor,
    errors: torch.Tensor,
    grid: Grid,
) -> None:
    """One block's channels, last first; fills their ``steps`` and ``errors``.

    Args:
        due: ``[batch, block, out]``, these channels with all later blocks' errors.
        within: ``[batch, block, block]``, below its diagonal ``L_ij / L_jj`` of these channels.
    """
    scales = grid.scales.unsqueeze(1)
    made, left = round_in_turn(due / scales, weights / scales, within.mT, grid, backwards=True)
    steps.copy_(made)
    torch.mul(left, scales, out=errors)


def round_in_turn(
    due: torch.Tensor,
    exact: torch.Tensor,
    coupling: torch.Tensor,
    grid: Grid,
    *,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds one block's channels one by one, each with the errors of those before it.

    Channel j is rounded at ``due_j + sum_i coupling_ji errors_i`` over the channels i whose turn
    came earlier, ``errors = exact - steps``. All in units of the grid's scales.

    Args:
        due, exact: ``[batch, block, out]``.
        coupling: ``[batch, block, block]``.
        backwards: the last channel is the first.

    Returns:
        ``steps`` and ``errors``, both ``[batch, block, out]``.
    """
    low, high = (bound.unsqueeze(1) for bound in grid.bounds)
    steps, errors = torch.empty_like(exact), torch.zeros_like(exact)
    starts = range(0, exact.shape[1], STRIP)
    for start in reversed(starts) if backwards else starts:
        strip = slice(start, start + STRIP)
        done = slice(start + STRIP, None) if backwards else slice(start)
        values, strip_errors = due[:, strip], errors[:, strip]
        if errors[:, done].shape[1]:
            values = torch.baddbmm(values, coupling[:, strip, done], errors[:, done])
        channels = zip(
            torch.split(values, 1, 1),
            torch.split(coupling[:, strip, strip], 1, 1),
            torch.split(exact[:, strip], 1, 1),
            torch.split(steps[:, strip], 1, 1),
            torch.split(strip_errors, 1, 1),
            strict=True,
        )
        for value, row, aim, step, error in reversed(list(channels)) if backwards else channels:
            value = torch.baddbmm(value, row, strip_errors)  # errors to come are still zeros
            torch.clamp(value.round_(), low, high, out=step)
            torch.sub(aim, step, out=error)
    return steps, errors
