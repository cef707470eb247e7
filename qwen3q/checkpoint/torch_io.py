"""Between checkpoint bytes and torch tensors, without a copy where the dtype allows."""

from __future__ import annotations

import warnings

import torch

from qwen3q.checkpoint.reader import Checkpoint, check_finite
from qwen3q.checkpoint.shards import DTYPES

TORCH_NAMES = {stored: name for name, (stored, _) in DTYPES.items()}
"""torch's name of each safetensors dtype."""


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor in its own dtype: a view of the file, not to be written to.

    Raises:
        CheckpointError: no such tensor, or a float tensor that holds NaN or Inf.
    """
    array = checkpoint.array(name)
    info = checkpoint.tensors[name]
    dtype = info.dtype
    check_finite(name, array, dtype, info.path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array.reshape(-1).view("u1"))
    return tensor.view(torch_dtype(TORCH_NAMES[dtype])).view(array.shape)


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a name such as ``bfloat16``."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(tensor: torch.Tensor) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(tensor.dtype).removeprefix("torch.")


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's elements as they lie on disk: row-major, little-endian."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data
