"""Scales on a linear's input channels that cost nothing at inference, and how they are fitted.

Channel j's weights are multiplied by ``s_j`` and its input divided by it; the division is folded
into what makes that input: a norm, v_proj's rows (for o_proj) or up_proj's rows (for down_proj).
SmoothQuant (Xiao et al., arXiv 2211.10438) picks s so that activations are easy to round, AWQ
(Lin et al., arXiv 2306.00978) so that weights are. Both are the minimum of one expected error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwen3q.models.config import Qwen3Config
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.limits import FITTED_OUTPUTS

_NORM = 12
"""A p-norm this high stands in for the maximum, which has no useful derivative."""
_STEPS = 12


@dataclass(frozen=True, slots=True)
class SmoothTarget:
    """Linears that share an input, and so one vector of scales.

    Attributes:
        weights: float32 ``[batch, in, out]``; a batch is experts behind one norm.
        importance: ``[batch, in]``, what a squared error on an input channel's weight costs.
        tie: int64 ``[in]``; channels with one number share one scale. None: all are free.
        tokens: some inputs ``[tokens, in]`` where activations are rounded too, else None.
    """

    weights: torch.Tensor
    importance: torch.Tensor
    tie: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    def sampled(self, outputs: int) -> SmoothTarget:
        """The same with every n-th output channel, at most ``outputs``."""
        stride = -(-self.weights.shape[2] // outputs)
        weights = self.weights[:, :, ::stride].contiguous()
        return SmoothTarget(weights, self.importance, self.tie, self.tokens)


def value_tie(config: Qwen3Config) -> torch.Tensor:
    """o_proj's input channels by the v_proj row they come from, ``[q_size]`` (GQA repeats v)."""
    heads = torch.arange(config.num_attention_heads)
    repeats = config.num_attention_heads // config.num_key_value_heads
    channels = torch.arange(config.head_dim)
    return ((heads // repeats)[:, None] * config.head_dim + channels).flatten()


def balanced_scales(target: SmoothTarget) -> torch.Tensor:
    """``(importance / mean squared weight)^(1/4)``, ``[in]``: the optimum for ranges that follow
    the root mean square instead of the maximum (by Cauchy and Schwarz)."""
    importance = target.importance.mean(0)
    energy = target.weights.square().mean((0, 2))
    floor = 1e-8
    importance = importance.clamp(min=floor * float(importance.max()))
    energy = energy.clamp(min=floor * float(energy.max()))
    return centred((importance / energy).pow(0.25), target.tie)


def centred(scales: torch.Tensor, tie: torch.Tensor | None) -> torch.Tensor:
    """Tied channels to their geometric mean, and the geometric mean of all to 1."""
    logs = scales.clamp(min=1e-12).log()
    if tie is not None:
        slots = int(tie.max()) + 1
        logs = _tied_sum(logs, tie) / torch.bincount(tie, minlength=slots)[tie]
    return (logs - logs.mean()).exp()


def fit_scales(target: SmoothTarget, scheme: Scheme) -> torch.Tensor:
    """Scales ``[in]`` with the least expected rounding error.

    Rounding with step d has variance d^2 / 12. A group's step follows its largest ``|w| s``, a
    token's its largest ``|x| / s``; so with ``I`` the importance and ``a`` the summed squared
    weights of a channel, the error is::

        sum over groups: max(|w| s)^2 * sum(I / s^2)   +   mean of max(|x| / s)^2 * sum(a s^2)

    each part over its squared number of levels, the second only where activations are rounded.
    With a p-norm for the maximum, the derivative by ``log s_j`` is a difference of two sums, one
    growing with s_j and one falling; the fixed point sets their logs equal.
    """
    target = target.sampled(FITTED_OUTPUTS)
    start = balanced_scales(target)
    weights = _WeightTerm(target, start, scheme)
    inputs = _InputTerm(target, start, scheme) if target.tokens is not None else None
    log = torch.zeros_like(start)
    for _ in range(_STEPS):
        growing, falling = weights.slopes(log)
        if inputs is not None:
            more = inputs.slopes(log)
            growing, falling = growing + more[0], falling + more[1]
        if target.tie is not None:
            growing, falling = (_tied_sum(x, target.tie) for x in (growing, falling))
        log += (falling.clamp_(min=1e-30) / growing.clamp_(min=1e-30)).log_() / (_NORM + 2)
    return centred(start * log.exp(), target.tie)


class _WeightTerm:
    """Error from rounding weights, from the start scales on."""

    def __init__(self, target: SmoothTarget, start: torch.Tensor, scheme: Scheme) -> None:
        batch, columns, out = target.weights.shape
        self._size = scheme.group_of(columns)
        grouped = target.weights.abs().mul_(start[:, None]).view(batch, -1, self._size, out)
        tops = grouped.amax(2).clamp_(min=1e-20)
        self._powers = grouped.div_(tops.unsqueeze(2)).pow_(_NORM)
        self._tops = tops.square_().div_(4 ** (scheme.bits - 1))
        self._importance = target.importance / start.square()

    def slopes(self, log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        powers = (log * _NORM).exp().view(-1, 1, self._size)
        sums = (powers @ self._powers).squeeze(2).clamp_(min=1e-30)
        steps = sums.pow(2 / _NORM) * self._tops
        peaks = (self._powers @ (steps / sums).unsqueeze(3)).squeeze(3) * powers.squeeze(1)
        costs = (self._importance * (-2 * log).exp()).view(len(steps), -1, self._size)
        growing = (peaks * costs.sum(2, keepdim=True)).sum(0)
        falling = (costs * steps.sum(2, keepdim=True)).sum(0)
        return growing.flatten(), falling.flatten()


class _InputTerm:
    """Error from rounding activations to one scale per token."""

    def __init__(self, target: SmoothTarget, start: torch.Tensor, scheme: Scheme) -> None:
        assert target.tokens is not None
        assert scheme.activation_bits is not None
        sizes = target.tokens.abs() / start
        tops = sizes.amax(1, keepdim=True).clamp_(min=1e-20)
        self._powers = (sizes / tops).pow_(_NORM)
        self._tops = tops.square_().squeeze(1).div_(4 ** (scheme.activation_bits - 1) * len(sizes))
        self._energy = target.weights.square().sum((0, 2)) * start.square()

    def slopes(self, log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        powers = (-log * _NORM).exp()
        sums = (self._powers @ powers).clamp_(min=1e-30)
        steps = sums.pow(2 / _NORM) * self._tops
        energy = self._energy * (2 * log).exp()
        falling = (self._powers.T @ (steps / sums)) * powers * energy.sum()
        return energy * steps.sum(), falling


def _tied_sum(values: torch.Tensor, tie: torch.Tensor) -> torch.Tensor:
    return values.new_zeros(int(tie.max()) + 1).index_add_(0, tie, values)[tie]


def fold_into_norm(
    norm: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """A norm divided by ``scales`` and rounded to ``dtype``, and the scales that makes exactly.

    Returns:
        the new norm (float32, representable in ``dtype``) and scales with ``norm / scales`` equal
        to it. Channels whose norm is 0 keep scale 1.
    """
    folded = (norm / scales).to(dtype).float()
    usable = (folded != 0) & torch.isfinite(folded)
    folded = torch.where(usable, folded, norm)
    exact = torch.where(usable & (norm != 0), norm / folded, 1.0)
    return folded, exact


def powers_of_two(scales: torch.Tensor) -> torch.Tensor:
    """The nearest powers of two: folding them changes no digit of a float."""
    return torch.exp2(scales.log2().round())
