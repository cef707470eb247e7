"""AWQ: protect the input channels that matter by scaling them before rounding to nearest.

Lin et al., arXiv 2306.00978. Candidates for the scales are the paper's powers of the activations'
size and the minimum of the expected error (``smooth.fit_scales``); the one with the least real
rounding error wins, and no scales at all is among them. The paper's clipping is the range search
of ``rtn``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.arithmetic import round_activations
from qwen3q.quantize.rtn import round_to_nearest
from qwen3q.quantize.smooth import SmoothTarget, centred, fit_scales

_POWERS = (0.25, 0.5, 0.75)
_JUDGED_OUTPUTS = 256
_BIAS_COST = 4.0
"""Rounded weights are wrong in the same way at every token, and their errors add up; the noise of
rounded activations averages out. So much more does an error of weights count, by measured
divergence of W8A8 models."""

Candidate = Callable[[], torch.Tensor]
"""Makes scales ``[in]``."""
Judged = tuple[float, torch.Tensor]
"""What scales cost, and the scales."""
Each = Callable[[Callable[[Candidate], Judged], Iterable[Candidate]], Iterable[Judged]]


def search_scales(target: SmoothTarget, scheme: Scheme, each: Each = map) -> torch.Tensor | None:
    """The best scales ``[in]`` for linears that share an input, or None if none help.

    With ``importance`` the inputs' mean squares this is AWQ; with what GPTQ's error feedback
    leaves of them (``Factor.costs``), it prepares for GPTQ.

    Args:
        each: runs a function over all candidates, side by side where it can.
    """
    judged = target.sampled(_JUDGED_OUTPUTS)

    def judge(candidate: Candidate) -> Judged:
        scales = candidate()
        return rounding_error(judged, scales, scheme), scales

    (least, _), *tried = each(judge, _candidates(target, scheme))
    best: torch.Tensor | None = None
    for error, scales in tried:
        if error < least:
            best, least = scales, error
    return best


def _candidates(target: SmoothTarget, scheme: Scheme) -> list[Candidate]:
    """No scales, the paper's, and the fitted ones."""
    size = target.importance.mean(0).sqrt()
    size.clamp_(min=1e-4 * float(size.max()))

    def grown(power: float) -> Candidate:
        return lambda: centred(size.pow(power), target.tie)

    ones = torch.ones_like(size)
    return [lambda: ones, *map(grown, _POWERS), lambda: fit_scales(target, scheme)]


def rounding_error(target: SmoothTarget, scales: torch.Tensor, scheme: Scheme) -> float:
    """What rounding the scaled weights costs: their importance-weighted squared error.

    Where activations are rounded too, it is the median over tokens of the squared output error
    over the squared output, so that a few huge tokens do not decide for all.
    """
    scaled = target.weights * scales[:, None]
    importance = target.importance / scales.square()
    off = round_to_nearest(scaled, importance, scheme).values().sub_(scaled)
    if target.tokens is None or scheme.activation_bits is None:
        return float(torch.matmul(importance.unsqueeze(1), off.square_()).sum())
    inputs = target.tokens / scales
    rounded = round_activations(inputs, scheme.activation_bits)
    noise = _squared((rounded - inputs) @ scaled)
    bias = _squared(rounded @ off)
    whole = _squared(inputs @ scaled).clamp_(min=1e-30)
    return float(((noise + _BIAS_COST * bias) / whole).median())


def _squared(outputs: torch.Tensor) -> torch.Tensor:
    """Squared length of each token's outputs, of all linears that share the input."""
    return outputs.square_().sum((0, 2))
