"""What one calibration pass collects about the inputs of linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
