"""Linears that share an input, rounded together: one Hessian, one factor, many outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import torch

from qwen3q.errors import UsageError
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.gptq import Factor, factorize, gptq, shrinkage, unfactored
from qwen3q.quantize.limits import (
    FEWEST_OUTPUTS,
    SAMPLE_STRIDE,
    SOLVED_AT_ONCE,
    SOLVED_ON_ACCELERATOR,
)
from qwen3q.quantize.refine import refine
from qwen3q.quantize.rtn import Rounded, round_to_nearest
from qwen3q.quantize.team import Team

Result = TypeVar("Result")

ALGORITHMS = ("gptq", "awq", "rtn")

_MOST_SWEEPS = 8
"""Of refinement where an error is too large; of many outputs one is enough, of a dozen four."""


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """What changes a result, and so belongs into a journal's fingerprint (``asdict`` it).

    Attributes:
        algorithm: ``gptq`` (error feedback and refinement), ``awq`` (scale and clip search, then
            rounding to nearest) or ``rtn`` (range search, rounding to nearest).
        smoothing: fold scales into norms, v_proj and up_proj where the search shows it helps.
        damping: share of the Hessian's mean diagonal added to it; grows until it factors.
        min_expert_tokens: an expert that fewer calibration tokens reach is topped up.
        sweeps: passes of coordinate descent after GPTQ.
    """

    algorithm: str = "gptq"
    smoothing: bool = True
    damping: float = 0.01
    min_expert_tokens: int = 128
    sweeps: int = 2

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"{self.algorithm!r} is no algorithm.", f"Known: {', '.join(ALGORITHMS)}."
            )

    def corrects_drift(self, scheme: Scheme) -> bool:
        """Whether GPTQ aims at the float model's outputs, and so makes up for what the layers
        before did to its inputs.

        Not where activations are rounded too: weights are fitted to the float inputs alone
        there. Rounding is noise, loudest where a few tokens are huge; fitted to noisy inputs,
        weights shrink for all tokens (errors in variables).
        """
        return self.algorithm == "gptq" and scheme.activation_bits is None

    def float_stride(self, scheme: Scheme) -> int | None:
        """Which portions of the float model's activations solving looks at: every n-th or none."""
        if self.corrects_drift(scheme) or scheme.activation_bits is not None:
            return 1
        return SAMPLE_STRIDE if self.smoothing and self.algorithm != "rtn" else None


@dataclass(frozen=True, slots=True)
class LinearReport:
    """What was done to one linear.

    Attributes:
        name: checkpoint name (``....weight``).
        bits, group_size, symmetric: the grid it got.
        algorithm: what its codes come from in the end.
        fallback: why it is not the algorithm asked for; empty if it is.
        error: squared output error over the squared output, on the calibration tokens.
        rtn_error: the same of plain round-to-nearest.
        tokens: calibration tokens that reached it (for an expert, the routed ones).
        forced_tokens: tokens added because too few reached it.
        seconds: time it took; linears solved together share theirs equally.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    algorithm: str
    fallback: str
    error: float
    rtn_error: float
    tokens: int
    forced_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Problem:
    """What to round. A batch entry is one Hessian: an expert's, or a dense stage's only one.

    Attributes:
        weights: float32 ``[out, in]`` per batch entry, linears with this input stacked.
        hessian: float32 ``[batch, in, in]``, mean of ``x^T x``; ``solve`` overwrites it.
        cross: float32 ``[batch, in, out]``, mean of ``x^T (x_float - x) W^T``; or ``[batch, in,
            in]`` without the factor ``W^T``, where that is no wider; None where there is no drift.
            ``solve`` overwrites it, too.
        folded: ``[batch, in]`` scales that ``weights`` were multiplied by, for the comparison
            with plain round-to-nearest.
        tokens: per batch entry, how many the mean is over.
        weak: per batch entry, why error feedback would not be trusted; empty if it is.
        rows: output channels of each of the stacked linears; one linear if empty.
    """

    weights: Sequence[torch.Tensor]
    hessian: torch.Tensor
    cross: torch.Tensor | None
    folded: torch.Tensor
    tokens: tuple[int, ...]
    weak: tuple[str, ...]
    rows: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """``out, in`` of every batch entry."""
        out, columns = self.weights[0].shape
        return out, columns

    def linears(self, outputs: slice) -> list[slice]:
        """Where each linear's channels lie among those of ``outputs``; some may have none."""
        ends = list(accumulate(self.rows or (self.shape[0],), initial=0))
        cuts = [min(max(end, outputs.start), outputs.stop) - outputs.start for end in ends]
        return [slice(first, last) for first, last in pairwise(cuts)]

    def target(self, outputs: slice) -> torch.Tensor:
        """Some output channels' weights, ``[batch, in, out]``."""
        return torch.stack([weight[outputs].T for weight in self.weights])

    def correction(self, outputs: slice) -> torch.Tensor | None:
        """What makes up for the drift of some outputs, once ``cross`` is ``H^-1`` times itself:
        ``[batch, in, out]`` in the factor's order."""
        if self.cross is None:
            return None
        out, columns = self.shape
        return self.cross[:, :, outputs] if out < columns else self.cross @ self.target(outputs)


@dataclass(frozen=True, slots=True)
class Solution:
    """Rounded weights of a ``Problem``.

    Attributes:
        codes: uint8 ``[batch, out, in]``; scales float32, zeros uint8 ``[batch, out, groups]``.
        errors, rtn_errors, outputs: ``[batch, out]``, squared output errors per output
            channel of this and of plain round-to-nearest, and squared outputs.
        algorithms, fallbacks: per batch entry.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    errors: torch.Tensor
    rtn_errors: torch.Tensor
    outputs: torch.Tensor
    algorithms: tuple[str, ...]
    fallbacks: tuple[str, ...]

    def linear(self, entry: int, outputs: slice, scheme: Scheme) -> QuantizedLinear:
        """The linear that some output channels of one batch entry make up."""
        codes = self.codes[entry, outputs].cpu()
        return QuantizedLinear(
            codes=codes,
            scales=self.scales[entry, outputs].cpu(),
            zeros=self.zeros[entry, outputs].cpu(),
            bits=scheme.bits,
            group_size=scheme.group_of(codes.shape[1]),
            symmetric=scheme.symmetric,
        )


def solve(
    problem: Problem,
    scheme: Scheme,
    options: SolveOptions,
    devices: Sequence[str],
    team: Team | None = None,
) -> Solution:
    """Rounds a problem's weights; output channels are spread over the devices, or on a processor
    over the team's threads.

    GPTQ's target is not W but ``W + H^-1 drift``: the weights whose outputs, on the inputs that
    there are, come closest to the float model's.
    """
    out, columns = problem.shape
    size = scheme.group_of(columns)
    if options.algorithm == "gptq":
        shrunk_by = [shrinkage(columns, tokens) for tokens in problem.tokens]
        factor = factorize(problem.hessian, size, options.damping, shrunk_by)
    else:
        factor = unfactored(problem.hessian)
    factors = {device: factor.to(device) for device in dict.fromkeys(devices)}
    on_cpu = devices[0].partition(":")[0] == "cpu"
    at_once = SOLVED_AT_ONCE if on_cpu else SOLVED_ON_ACCELERATOR
    step = at_once // (columns * len(problem.weights))
    if options.algorithm == "gptq" and problem.cross is not None:
        cross = problem.cross

        def make_up(device: str, part: slice) -> None:
            drift = factors[device].ordered(cross[:, :, part].to(device))
            factors[device].solve(drift)
            cross[:, :, part] = drift

        _spread(make_up, cross.shape[2], step, devices, team)

    def run(device: str, part: slice) -> Solution:
        return _solve_part(problem, factors[device], part, scheme, options)

    solved = _spread(run, out, step, devices, team)
    return _joined(solved) if len(solved) > 1 else solved[0]


def _spread(
    run: Callable[[str, slice], Result],
    count: int,
    step: int,
    devices: Sequence[str],
    team: Team | None,
) -> list[Result]:
    """Runs about ``step`` of ``count`` columns at a time, by turns on several devices, or on one
    processor's team of threads."""
    step = max(FEWEST_OUTPUTS, step // FEWEST_OUTPUTS * FEWEST_OUTPUTS)
    parts = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    turns = [devices[number % len(devices)] for number in range(len(parts))]
    several = len(set(devices))
    if several > 1:
        with ThreadPoolExecutor(several) as pool:
            return list(pool.map(run, turns, parts))
    jobs = list(zip(turns, parts, strict=True))
    return team.map(lambda job: run(*job), jobs) if team else [run(*job) for job in jobs]


def _solve_part(
    problem: Problem, factor: Factor, outputs: slice, scheme: Scheme, options: SolveOptions
) -> Solution:
    """Some output channels; computed where the factor lies, returned where the problem lies."""
    home, device = problem.hessian.device, factor.square.device
    weights = problem.target(outputs).to(device)
    target = factor.ordered(weights)
    fallbacks = tuple("" for _ in problem.weak)
    if options.algorithm == "gptq":
        fallbacks = tuple(
            weak or ("its Hessian could not be factored" if math.isnan(damping) else "")
            for weak, damping in zip(problem.weak, factor.damping, strict=True)
        )
        correction = problem.correction(outputs)
        if correction is not None:
            falls = _falls(fallbacks, target)[:, None, None]
            target += correction.to(device).masked_fill(falls, 0)
            del correction
        made = _gptq_where(fallbacks, target, factor, scheme, options)
    else:
        made = round_to_nearest(target, factor.diagonal, scheme)
    plain = _plain(factor, weights, problem.folded, scheme).sub_(target)
    rtn_errors = factor.squared_outputs(plain)
    del weights, plain
    errors = factor.squared_outputs(made.values().sub_(target))
    parts = problem.linears(outputs)
    made, errors = _no_worse(made, errors, rtn_errors, parts, target, factor, scheme)
    return Solution(
        codes=factor.restored(made.codes).to(torch.uint8).mT.contiguous().to(home),
        scales=factor.restored_groups(made.scales).mT.contiguous().to(home),
        zeros=factor.restored_groups(made.zeros).to(torch.uint8).mT.contiguous().to(home),
        errors=errors.to(home),
        rtn_errors=rtn_errors.to(home),
        outputs=factor.squared_outputs(target).to(home),
        algorithms=tuple("rtn" if fallback else options.algorithm for fallback in fallbacks),
        fallbacks=fallbacks,
    )


def _gptq_where(
    fallbacks: tuple[str, ...],
    target: torch.Tensor,
    factor: Factor,
    scheme: Scheme,
    options: SolveOptions,
) -> Rounded:
    """GPTQ where there is no reason for a fallback, else importance-weighted rounding."""
    falls = _falls(fallbacks, target)
    nearest = None
    if bool(falls.any()):
        nearest = round_to_nearest(target, factor.diagonal, scheme)
        if bool(falls.all()):
            return nearest
    made = gptq(target, factor, scheme)
    made = refine(target, factor, made, scheme, options.sweeps)
    if nearest is None:
        return made
    return _chosen(falls[:, None], nearest, made)


def _no_worse(
    made: Rounded,
    errors: torch.Tensor,
    rtn_errors: torch.Tensor,
    linears: Sequence[slice],
    target: torch.Tensor,
    factor: Factor,
    scheme: Scheme,
) -> tuple[Rounded, torch.Tensor]:
    """Linears, none with more error than plain round-to-nearest if sweeps can help it, and their
    errors.

    Rounding weighted by the squares of few inputs may come out worse than plain rounding on these
    inputs, and so may error feedback under a much shrunk Hessian, or weights whose scales were
    folded for the sake of rounded inputs. As few output channels as that takes are refined: each
    that is fits inputs it never sees.

    Args:
        errors, rtn_errors: ``[batch, out]``, of these weights and of plain round-to-nearest.
        linears: where each linear's output channels lie.
    """

    def excess_of(errors: torch.Tensor) -> torch.Tensor:
        return torch.stack([(errors - rtn_errors)[:, part].sum(1) for part in linears], 1)

    excess = excess_of(errors)
    if not bool((excess > 0).any()):
        return made, errors
    refined, exact = made, factor.as_it_was()
    for _ in range(_MOST_SWEEPS):
        refined = refine(target, exact, refined, scheme, 1)
        refined_errors = factor.squared_outputs(refined.values().sub_(target))
        if not bool(((excess_of(refined_errors) > 0) & (excess > 0)).any()):
            break
    taken = torch.zeros_like(errors, dtype=torch.bool)
    for part, due in zip(linears, excess.unbind(1), strict=True):
        gains, order = (errors - refined_errors)[:, part].sort(dim=1, descending=True)
        gained_before = gains.cumsum(1) - gains
        taken[:, part].scatter_(1, order, gained_before < due[:, None])
    return _chosen(taken, refined, made), torch.where(taken, refined_errors, errors)


def _falls(fallbacks: tuple[str, ...], like: torch.Tensor) -> torch.Tensor:
    """Which batch entries fall back, bool ``[batch]``."""
    return torch.tensor([bool(fallback) for fallback in fallbacks], device=like.device)


def _chosen(where: torch.Tensor, first: Rounded, second: Rounded) -> Rounded:
    """``first`` at the output channels ``[batch, out]`` (or ``[batch, 1]``) that are true."""
    where = where.unsqueeze(1)
    return Rounded(
        torch.where(where, first.steps, second.steps),
        torch.where(where, first.scales, second.scales),
        torch.where(where, first.zeros, second.zeros),
    )


def _plain(
    factor: Factor, weights: torch.Tensor, folded: torch.Tensor, scheme: Scheme
) -> torch.Tensor:
    """Round-to-nearest over the full range without folded scales, in the factor's order."""
    scales = folded.to(weights.device)[:, :, None]
    ones = torch.ones_like(folded)
    rounded = round_to_nearest(weights / scales, ones, scheme, search=False)
    return factor.ordered(rounded.values().mul_(scales))


def _joined(parts: Sequence[Solution]) -> Solution:
    """Solutions of consecutive output channels as one."""
    return Solution(
        codes=torch.cat([part.codes for part in parts], 1),
        scales=torch.cat([part.scales for part in parts], 1),
        zeros=torch.cat([part.zeros for part in parts], 1),
        errors=torch.cat([part.errors for part in parts], 1),
        rtn_errors=torch.cat([part.rtn_errors for part in parts], 1),
        outputs=torch.cat([part.outputs for part in parts], 1),
        algorithms=parts[0].algorithms,
        fallbacks=parts[0].fallbacks,
    )
