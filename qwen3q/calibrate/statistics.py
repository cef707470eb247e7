"""What one calibration pass collects about the inputs of linears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwen3q.models.decoder import Weights


@dataclass(frozen=True, slots=True)
class InputMoments:
    """Mean square of each input channel of one linear: llama.cpp's importance matrix.

    llama.cpp (tools/imatrix) stores sums of squares and counts; for an expert both are over the
    tokens routed to it. An expert that no token reached has 0 tokens and mean squares of 1.

    Attributes:
        mean_squares: float32 ``[in]``.
        tokens: calibration tokens that reached the linear.
    """

    mean_squares: torch.Tensor
    tokens: int


class MomentWatch:
    """A ``Linear`` for the decoder that also sums the squares of what goes in."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._sums: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._last: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self._last[0] is not x:
            squares = x.flatten(0, -2).float().square().sum(0, dtype=torch.float64)
            self._last = (x, squares)
        squares_now = self._last[1]
        assert squares_now is not None
        self._sums[name] = self._sums.get(name, 0) + squares_now
        self._tokens[name] = self._tokens.get(name, 0) + x.flatten(0, -2).shape[0]
        return F.linear(x, self._weights[name])

    def moments(self, name: str, width: int) -> InputMoments:
        """What was seen of one linear with ``width`` inputs."""
        tokens = self._tokens.get(name, 0)
        if tokens == 0:
            return InputMoments(torch.ones(width), 0)
        return InputMoments((self._sums[name] / tokens).float().cpu(), tokens)


class Gram:
    """Second moments of a linear's inputs, and how far they drifted from the float model's.

    Attributes:
        weight: the float weights ``[out, in]`` of the linears with this input.
        hessian: sum of ``x^T x`` over tokens, float32 ``[in, in]``, ``x`` the quantized prefix's
            input.
        drift: sum of ``x^T (x_float - x) W^T``, float32 ``[in, out]``: what W's output misses
            because its input is not the float model's (GPTAQ, Li et al., arXiv 2504.02692).
        tokens: how many.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """Starts empty, for a linear with float weight ``[out, in]``."""
        out, columns = weight.shape
        self.hessian = torch.zeros(columns, columns, device=weight.device)
        self._by_output = out < columns
        self.weight = weight
        self._cross = torch.zeros(columns, min(out, columns), device=weight.device)
        self.tokens = 0

    def add(self, own: torch.Tensor, floating: torch.Tensor) -> None:
        """Adds the inputs ``[tokens, in]`` of the same tokens in both models."""
        own = own.float()
        missing = floating.float() - own
        self.hessian.addmm_(own.T, own)
        self._cross.addmm_(own.T, missing @ self.weight.T if self._by_output else missing)
        self.tokens += own.shape[0]

    @property
    def drift(self) -> torch.Tensor:
        return self._cross if self._by_output else self._cross @ self.weight.T


def stack_grams(grams: Sequence[Gram]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean Hessians ``[batch, in, in]`` and mean drifts ``[batch, in, out]``; uses the grams up."""
    for gram in grams:
        gram.hessian /= max(gram.tokens, 1)
    if len(grams) == 1:
        hessian = grams[0].hessian[None]
    else:
        hessian = torch.stack([gram.hessian for gram in grams])
    return hessian, torch.stack([gram.drift / max(gram.tokens, 1) for gram in grams])
