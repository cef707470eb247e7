"""Float weights as the stream reads them: one tensor at a time, widened to float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from qwen3q.checkpoint.reader import Checkpoint, check_finite
from qwen3q.checkpoint.torch_io import torch_dtype
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import layer_tensors
from qwen3q.quantize.local_plan import float_dtype

EMBEDDING = "model.embed_tokens.weight"

_READ_VALUES = 1 << 22
"""Values that are widened at a time, so that a tensor is never in memory twice."""


class LayerWeights(Mapping[str, torch.Tensor]):
    """A decoder layer's tensors by checkpoint name, float32 ``[out, in]``.

    None is kept: each is read and widened anew when it is asked for, the caller's to change.
    """

    def __init__(self, checkpoint: Checkpoint, config: Qwen3Config, index: int) -> None:
        self._checkpoint = checkpoint
        self._names = {spec.name: None for spec in layer_tensors(config, index)}
        self._checked: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Raises: CheckpointError if it is not finite, UsageError if it is no float tensor."""
        if name not in self._names:
            raise KeyError(name)
        dtype, info = self.dtype(name), self._checkpoint.tensors[name]
        array = self._checkpoint.array(name)
        out = torch.empty(array.shape)
        rows = max(1, _READ_VALUES // max(1, array[:1].size))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            if name not in self._checked:
                check_finite(name, part, info.dtype, info.path)
            out[start : start + rows] = torch.from_numpy(part.copy()).view(dtype)
        self._checked.add(name)
        self._checkpoint.release(name)
        return out

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored in."""
        return torch_dtype(float_dtype(self._checkpoint, name))


def embedded(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings of ``[rows, length]`` tokens, float32; reads no other row of the table."""
    array = checkpoint.array(EMBEDDING)
    dtype = torch_dtype(float_dtype(checkpoint, EMBEDDING))
    picked = array[tokens.flatten().numpy()]
    info = checkpoint.tensors[EMBEDDING]
    check_finite(EMBEDDING, picked, info.dtype, info.path)
    return torch.from_numpy(picked).view(dtype).float().view(*tokens.shape, array.shape[1])
