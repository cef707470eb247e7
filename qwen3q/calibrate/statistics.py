"""What one calibration pass collects about the inputs of linears."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from qwen3q.devices import widest_float
from qwen3q.models.decoder import Weights
from qwen3q.models.products import add_product, padded, product

_STRIP_ROWS = 256
"""Rows of a Hessian that are added to in one product; a Hessian has at most about 8 strips."""

_LOUD = 16
"""Times the median token's size, from where a token counts as loud."""

Each = Callable[[Callable[[slice], None], Iterable[slice]], Iterable[None]]
"""``map``, or what does the same with several at a time."""


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
            sums = x.flatten(0, -2).float().square().sum(0)
            self._last = x, sums.to(widest_float(x.device))
        self._sums[name] = self._sums.get(name, 0) + self._last[1]
        self._tokens[name] = self._tokens.get(name, 0) + x.flatten(0, -2).shape[0]
        return product(x, self._weights[name])

    def add(self, other: MomentWatch) -> None:
        """Takes in what another saw of the same weights."""
        for name, sums in other._sums.items():
            self._sums[name] = self._sums.get(name, 0) + sums
            self._tokens[name] = self._tokens.get(name, 0) + other._tokens[name]

    def moments(self, name: str, width: int) -> InputMoments:
        """What was seen of one linear with ``width`` inputs."""
        tokens = self._tokens.get(name, 0)
        if tokens == 0:
            return InputMoments(torch.ones(width), 0)
        return InputMoments((self._sums[name] / tokens).float().cpu(), tokens)


def merged(watches: Sequence[MomentWatch]) -> MomentWatch:
    """What several saw of the same weights; sums are added in their order."""
    whole = MomentWatch({})
    for watch in watches:
        whole.add(watch)
    return whole


@dataclass(frozen=True, slots=True)
class InputPair:
    """What one linear is fed for the same tokens in two models, as ``Gram`` adds it.

    Attributes:
        tokens: how many; more rows may follow, of zeros.
        own: ``[tokens, in]``, under the quantized prefix, in the dtype it is multiplied in.
        missing: ``[tokens, cross]``, what the float model's input has beyond it; times
            ``W^T`` where that is narrower. None where drift is not asked for.
    """

    tokens: int
    own: torch.Tensor
    missing: torch.Tensor | None


class Gram:
    """Second moments of a linear's inputs, and how far they drifted from the float model's.

    With ``x`` an input under the quantized prefix, the Hessian is the mean of ``x^T x``, float32
    ``[in, in]``, and the drift that of ``x^T (x_float - x) W^T``, ``[in, out]``: what W's output
    misses because its input is not the float model's (GPTAQ, Li et al., arXiv 2504.02692).

    Attributes:
        tokens: how many were added.
        hessian: sums so far, valid on and above the diagonal until ``finish``.
        cross: ``[in, out]`` where W is given, sums of the drift itself; else ``[in, in]``, without
            the factor ``W^T``. None where drift is not asked for.
    """

    def __init__(
        self,
        columns: int,
        weight: torch.Tensor | None = None,
        *,
        drift: bool = True,
        device: str | torch.device = "cpu",
        factors: torch.dtype = torch.float32,
    ) -> None:
        """Starts empty.

        Args:
            columns: inputs of the linears.
            weight: ``[out, in]``, all linears with this input, in the dtype they run in; for
                drift, where they have fewer outputs than inputs.
            drift: collect it.
            factors: what inputs are rounded to before they are multiplied. Where a token is far
                louder than the others they stay float32: what it adds is nearly of rank 1, and
                rounded products of it are no second moments of anything.
        """
        self.tokens = 0
        self.hessian = torch.zeros(columns, columns, device=device)
        self.cross: torch.Tensor | None = None
        if drift:
            self.cross = torch.zeros(
                columns, columns if weight is None else len(weight), device=device
            )
        self._weight = weight
        self._factors = factors
        step = max(_STRIP_ROWS, columns // 8)
        self._strips = [slice(start, start + step) for start in range(0, columns, step)]

    def pair(self, own: torch.Tensor, floating: torch.Tensor | None) -> InputPair:
        """Makes the inputs ``[tokens, in]`` of the same tokens in both models ready to be added.

        Args:
            floating: the float model's; only where drift is collected.
        """
        factors = self._factors
        if factors == torch.bfloat16 and _any_loud(own):
            factors = torch.float32
        missing = None
        if self.cross is not None and floating is not None:
            missing = floating.float() - own
            if self._weight is not None:
                missing = product(missing.to(self._weight.dtype), self._weight)
            missing = _factor(missing, factors)
        return InputPair(len(own), _factor(own, factors), missing)

    def add(self, pairs: Sequence[InputPair], each: Each = map) -> None:
        """Adds some tokens, a strip of rows at a time.

        Args:
            each: runs a function over all strips, side by side where it can.
        """

        def add_strip(strip: slice) -> None:
            for pair in pairs:
                left = pair.own[:, strip].T
                add_product(self.hessian[strip, strip.start :], left, pair.own[:, strip.start :])
                if self.cross is not None and pair.missing is not None:
                    add_product(self.cross[strip], left, pair.missing)

        deque(each(add_strip, self._strips), maxlen=0)
        self.tokens += sum(pair.tokens for pair in pairs)

    def finish(self) -> None:
        """Turns the sums into means, and mirrors the Hessian."""
        for strip in self._strips:
            self.hessian[strip.stop :, strip] = self.hessian[strip, strip.stop :].T
        for sums in (self.hessian, self.cross):
            if sums is not None:
                sums /= max(self.tokens, 1)
        self._weight = None

    def free(self) -> None:
        """Gives the memory back; only ``tokens`` stays."""
        self.hessian = torch.empty(0)
        self.cross = None


def _any_loud(x: torch.Tensor) -> bool:
    """Whether a token's inputs, a row of ``[tokens, in]``, are far larger than most tokens'."""
    sizes = torch.linalg.vector_norm(x, dim=1)
    return bool(len(sizes) and sizes.max() > _LOUD * sizes.median())


def _factor(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows ``[tokens, in]`` as they are multiplied."""
    return padded(x.to(dtype)) if dtype == torch.bfloat16 else x.to(dtype)
