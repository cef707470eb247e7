"""Float32 weights of any artefact under the checkpoint's names: folders and GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from qwen3q.errors import CheckpointError, ModelError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.formats.gguf_file import GgufTensor, read_header, split_paths
from qwen3q.formats.reader import QuantizedFolder
from qwen3q.formats.recognise import Storage
from qwen3q.models.config import Qwen3Config, parse_config
from qwen3q.models.tensors import TensorSpec, model_tensors
from qwen3q.plan.gguf import gguf_name

_MODEL_TYPES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe"}


class WeightSource(Protocol):
    """Where a model's weights come from, one at a time."""

    @property
    def config(self) -> Qwen3Config: ...

    def weight(self, name: str) -> torch.Tensor:
        """One tensor, float32, in its checkpoint shape."""

    def rounds_input(self, name: str) -> bool:
        """Whether serving rounds this linear's input to int8, one scale per token."""


class FolderWeights:
    """A folder in any layout that ``qwen3q.formats`` reads."""

    def __init__(self, artefact: Artefact) -> None:
        self._folder = QuantizedFolder(artefact.path)
        self.config = self._folder.config

    def weight(self, name: str) -> torch.Tensor:
        return self._folder.weight(name)

    def rounds_input(self, name: str) -> bool:
        stored = self._folder.weights[name]
        return stored.storage is Storage.INT_QUANTIZED and self._folder.activation_bits == 8


class GgufWeights:
    """A GGUF file, dequantized by gguf-py; llama.cpp's rounding of activations is left out."""

    def __init__(self, artefact: Artefact) -> None:
        headers = [read_header(part) for part in split_paths(artefact.path)]
        self._tensors = {
            name: (header.path, tensor)
            for header in headers
            for name, tensor in header.tensors.items()
        }
        tied = "output.weight" not in self._tensors
        self.config = gguf_config(headers[0].metadata, str(artefact.path), tied=tied)
        self._specs = {spec.name: spec for spec in model_tensors(self.config)}

    def weight(self, name: str) -> torch.Tensor:
        spec = self._specs[name]
        stored = gguf_name(spec)
        if stored not in self._tensors:
            raise CheckpointError(f"The GGUF file has no tensor {stored}.")
        return torch.from_numpy(_dequantize(*self._tensors[stored], spec))

    def rounds_input(self, name: str) -> bool:
        return False


def open_weights(artefact: Artefact) -> WeightSource:
    """The weights of ``artefact``; reads none of them yet."""
    return GgufWeights(artefact) if artefact.is_gguf else FolderWeights(artefact)


def gguf_config(metadata: Mapping[str, Any], where: str, *, tied: bool) -> Qwen3Config:
    """The config that a GGUF file's metadata state.

    Raises:
        ModelError: no Qwen3, or a key is missing.
    """
    architecture = str(metadata.get("general.architecture"))
    if architecture not in _MODEL_TYPES:
        raise ModelError(f"{where} is of architecture {architecture!r}, which is not Qwen3.")

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    raw = {
        "model_type": _MODEL_TYPES[architecture],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": get("attention.key_length"),
        "intermediate_size": get("feed_forward_length"),
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", [])),
        "tie_word_embeddings": tied,
        "max_position_embeddings": get("context_length"),
        "rope_theta": get("rope.freq_base"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }
    if get("rope.scaling.type") == "yarn":
        raw["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
    return parse_config(raw, where)


def _dequantize(
    path: Path, tensor: GgufTensor, spec: TensorSpec
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One checkpoint tensor out of a stored one; of stacked experts only the wanted one."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    experts = tensor.shape[0] if spec.expert is not None else 1
    shape = tensor.shape[1:] if spec.expert is not None else tensor.shape
    if shape != spec.shape:
        raise CheckpointError(
            f"{tensor.name} has shape {list(shape)}, but its metadata give {list(spec.shape)}."
        )
    each = tensor.nbytes // experts
    start = tensor.start + each * (spec.expert or 0)
    raw = np.fromfile(path, np.uint8, each, offset=start)
    rows = raw.reshape(spec.shape[0] if len(shape) == 2 else 1, -1)
    values = dequantize(rows, GGMLQuantizationType[tensor.type])
    return np.ascontiguousarray(values.reshape(spec.shape), np.float32)
