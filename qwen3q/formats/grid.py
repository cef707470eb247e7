"""What every uniform quantizer produces and every integer layout packs: codes on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A linear's weights as ``(codes - zeros) * scales``, one scale and zero per group of inputs.

    Attributes:
        codes: uint8 ``[out, in]``, in ``0 .. 2**bits - 1``.
        scales: float32 ``[out, in / group_size]``, already rounded to the layout's scale dtype.
        zeros: uint8 ``[out, in / group_size]``, the code that means 0; its middle if symmetric.
        bits: width of a code.
        group_size: inputs that share a scale; ``in`` for one scale per output channel.
        symmetric: zeros are all ``2**(bits-1)``.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group_size: int
    symmetric: bool

    def dequantize(self) -> torch.Tensor:
        """The weights these codes stand for, float32 ``[out, in]``."""
        out, columns = self.codes.shape
        grouped = self.codes.float().view(out, -1, self.group_size)
        grouped.sub_(self.zeros.float().unsqueeze(-1)).mul_(self.scales.unsqueeze(-1))
        return grouped.view(out, columns)
