"""A Qwen3's GGUF file, all parts of it, held against the shape that its own metadata give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3q.errors import REFETCH, CheckpointError
from qwen3q.formats.gguf_config import MODEL_TYPES, gguf_config
from qwen3q.formats.gguf_file import GgufHeader, GgufTensor, read_header, split_paths
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.gguf import gguf_name


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What the headers declare.

    Attributes:
        headers: of every part, the first one with the metadata.
        config: the shape.
        tensors: the file that each lies in, and where, by llama.cpp's name.
    """

    headers: tuple[GgufHeader, ...]
    config: Qwen3Config
    tensors: dict[str, tuple[Path, GgufTensor]]


def read_gguf_model(path: Path) -> GgufModel:
    """Reads the headers of ``path`` and of the parts beside it.

    Raises:
        CheckpointError: a header is broken, or a tensor is missing or misshapen.
        ModelError: no Qwen3, or metadata that make no sense.
    """
    return _held_against_metadata(path, _headers(path))


def check_gguf(path: Path) -> None:
    """Refuses a file that llama.cpp would end the process over; of other models than Qwen3 only
    the headers are looked at.

    Raises:
        CheckpointError, ModelError: as ``read_gguf_model``.
    """
    headers = _headers(path)
    if str(headers[0].metadata.get("general.architecture")) in MODEL_TYPES:
        _held_against_metadata(path, headers)


def _headers(path: Path) -> tuple[GgufHeader, ...]:
    return tuple(read_header(part) for part in split_paths(path))


def _held_against_metadata(path: Path, headers: tuple[GgufHeader, ...]) -> GgufModel:
    tensors = {name: (header.path, t) for header in headers for name, t in header.tensors.items()}
    tied = "output.weight" not in tensors
    config = gguf_config(headers[0].metadata, str(path), tied=tied)
    for name, shape in _shapes(config).items():
        if name not in tensors:
            raise CheckpointError(f"{path} has no tensor {name}.", REFETCH)
        found = tensors[name][1].shape
        if found != shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(found)}, but its metadata give {list(shape)}.",
                REFETCH,
            )
    return GgufModel(headers, config, tensors)


def _shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Row-major shape of each tensor by llama.cpp's name; experts of one kind are stacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in model_tensors(config):
        stacked = () if spec.expert is None else (config.num_experts,)
        shapes[gguf_name(spec)] = (*stacked, *spec.shape)
    return shapes
