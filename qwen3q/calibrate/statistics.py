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
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, x.flatten(0, -2).float().square().sum(0).double()
        self._sums[name] = self._sums.get(name, 0) + self._last[1]
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

    With ``x`` an input under the quantized prefix, the Hessian is the mean of ``x^T x``, float32
    ``[in, in]``, and the drift that of ``x^T (x_float - x) W^T``, ``[in, out]``: what W's output
    misses because its input is not the float model's (GPTAQ, Li et al., arXiv 2504.02692).

    Attributes:
        weight: the float weights ``[out, in]`` of the linears with this input.
        tokens: how many were added.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """Starts empty."""
        out, columns = weight.shape
        self.weight = weight
        self.tokens = 0
        self._by_output = out < columns
        self._sums = torch.zeros(columns, columns + min(out, columns), device=weight.device)

    def add(self, own: torch.Tensor, floating: torch.Tensor) -> None:
        """Adds the inputs ``[tokens, in]`` of the same tokens in both models."""
        own = own.float()
        missing = floating - own
        if self._by_output:
            missing = missing @ self.weight.T
        self._sums.addmm_(own.T, torch.cat((own, missing), 1))
        self.tokens += own.shape[0]

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Hessian and drift per token; uses the sums up."""
        columns = self._sums.shape[0]
        self._sums /= max(self.tokens, 1)
        cross = self._sums[:, columns:]
        return self._sums[:, :columns], cross if self._by_output else cross @ self.weight.T


def stack_grams(grams: Sequence[Gram]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean Hessians ``[batch, in, in]`` and mean drifts ``[batch, in, out]``; uses the grams up."""
    means = [gram.means() for gram in grams]
    return torch.stack([h for h, _ in means]), torch.stack([d for _, d in means])
