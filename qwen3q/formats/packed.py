"""Tensors as their files store them, made float32 when they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Unpack = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One tensor of the model.

    Attributes:
        parts: what is stored of it, by suffix.
        unpack: makes the float32 tensor of them, in its checkpoint shape.
        host_only: the processor alone can unpack it.
    """

    parts: Mapping[str, torch.Tensor]
    unpack: Unpack
    host_only: bool = False

    @property
    def nbytes(self) -> int:
        """What the parts take."""
        return sum(part.nbytes for part in self.parts.values())

    def near(self, device: torch.device) -> PackedWeight:
        """With its parts where they can be unpacked for ``device``.

        Apple's GPUs share the processor's memory and lack some dtypes: parts stay where they are.
        """
        if self.host_only or device.type == "mps":
            return self
        parts = {suffix: part.to(device) for suffix, part in self.parts.items()}
        return PackedWeight(parts, self.unpack)

    def weight(self) -> torch.Tensor:
        """Float32, in its checkpoint shape, where the parts lie."""
        return self.unpack(self.parts)
