"""The plan: the ordered list of tensors that an artefact will hold, to the byte.

An estimate sums it, a quantizer executes it, a verifier checks a folder against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from qwen3q.models.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the artefact.

    Attributes:
        name: as it stands in the artefact.
        type: the format's own name for its storage, such as ``Q6_K``, ``int32`` or ``bfloat16``.
        shape: row-major, ``[out, in]`` for a linear, ``[expert, out, in]`` for merged experts.
        nbytes: bytes of its data, padding excluded.
        sources: the checkpoint tensors it is made from, in order.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    sources: tuple[TensorSpec, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one format of one model will be.

    Attributes:
        model: the model's name, for people.
        format: ``gguf:Q4_K_M``, ``gptq:int4``, ...
        tensors: in file order.
        parameters: parameters of the source model, for bits per weight.
        overhead_bytes: headers, metadata and padding beside the tensors.
        overhead_exact: False where the tokenizer is not at hand and its metadata is estimated.
        needs_imatrix: tensors that may only be written with an importance matrix.
    """

    model: str
    format: str
    tensors: tuple[PlannedTensor, ...]
    parameters: int
    overhead_bytes: int
    overhead_exact: bool = True
    needs_imatrix: tuple[str, ...] = ()

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def file_bytes(self) -> int:
        return self.tensor_bytes + self.overhead_bytes

    @property
    def bits_per_weight(self) -> float:
        return self.tensor_bytes * 8 / self.parameters
