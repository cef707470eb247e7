"""How a model lies in memory while torch answers with it: in float32, or packed as it is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum

import torch

from qwen3q.errors import OutOfMemoryError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.formats.packed import PackedWeight
from qwen3q.process_memory import free_memory

_FLOAT_BYTES = 4
_SHARE = 0.9
"""Of the free memory that weights may take; keys, values and what runs need the rest."""


class Residence(StrEnum):
    """FLOAT is faster; PACKED unpacks each linear whenever it is used."""

    FLOAT = "float32"
    PACKED = "packed"


def residence(artefact: Artefact, device: torch.device) -> Residence:
    """How the weights of ``artefact`` fit into what is free on ``device``.

    Raises:
        OutOfMemoryError: not even packed.
    """
    free = free_on(device)
    packed = artefact.file_bytes or 0
    if free is None or _FLOAT_BYTES * artefact.parameters <= _SHARE * free:
        return Residence.FLOAT
    if packed <= _SHARE * free:
        return Residence.PACKED
    raise OutOfMemoryError(
        f"{artefact.name} takes {packed / 1e9:.1f} GB as it is stored, and {free / 1e9:.1f} GB are "
        f"free on {device}: torch can't answer with it here.",
        "Make a GGUF of it for llama.cpp, which shares it between GPU and processor, or serve it "
        "and give the URL.",
    )


def free_on(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device``; None where not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


class PackedLayer(Mapping[str, torch.Tensor]):
    """A layer's weights by short name, unpacked when they are asked for; the last one is kept."""

    def __init__(self, packed: Mapping[str, PackedWeight], device: torch.device) -> None:
        self._packed = {name: weight.near(device) for name, weight in packed.items()}
        self._device = device
        self._last: tuple[str, torch.Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """What the packed weights take."""
        return sum(weight.nbytes for weight in self._packed.values())

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._last is None or self._last[0] != name:
            packed = self._packed[name]
            self._last = None  # its memory is free for the next one
            self._last = name, packed.weight().to(self._device)
        return self._last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)
