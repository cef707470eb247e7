"""Weights of any artefact under the checkpoint's names: folders and GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.input_rounding import (
    Rounding,
    fp8_per_group,
    fp8_per_token,
    ggml_rounding,
    int8_beside_outliers,
    int8_per_token,
)
from qwen3q.formats.gguf_file import GgufTensor
from qwen3q.formats.gguf_model import read_gguf_model
from qwen3q.formats.packed import PackedWeight
from qwen3q.formats.reader import QuantizedFolder
from qwen3q.formats.recognise import Storage
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import TensorSpec, model_tensors
from qwen3q.plan.gguf import gguf_name

_ROUNDINGS = {
    Storage.INT_QUANTIZED: int8_per_token,
    Storage.FP8_BLOCKS: fp8_per_group,
    Storage.FP8_CHANNELS: fp8_per_token,
    Storage.BNB_INT8: int8_beside_outliers,
}
_COMPRESSED = (Storage.INT_QUANTIZED, Storage.FP8_CHANNELS)
"""compressed-tensors says in its config whether activations are rounded at all."""


class WeightSource(Protocol):
    """Where a model's weights come from, one at a time."""

    @property
    def config(self) -> Qwen3Config: ...

    def weight(self, name: str) -> torch.Tensor:
        """One tensor, float32, in its checkpoint shape."""

    def packed(self, name: str) -> PackedWeight:
        """The same as it is stored."""

    def input_rounding(self, name: str) -> Rounding | None:
        """What an engine does to this linear's input; None for nothing."""


class FolderWeights:
    """A folder in any layout that ``qwen3q.formats`` reads."""

    def __init__(self, artefact: Artefact) -> None:
        self._folder = QuantizedFolder(artefact.path)
        self.config = self._folder.config

    def weight(self, name: str) -> torch.Tensor:
        return self._folder.weight(name)

    def packed(self, name: str) -> PackedWeight:
        return self._folder.packed(name)

    def input_rounding(self, name: str) -> Rounding | None:
        storage = self._folder.weights[name].storage
        if self._folder.activation_bits != 8 and storage in _COMPRESSED:
            return None
        return _ROUNDINGS.get(storage)


class GgufWeights:
    """A GGUF file, dequantized by gguf-py; inputs are rounded as llama.cpp's CPU kernels do."""

    def __init__(self, artefact: Artefact) -> None:
        model = read_gguf_model(artefact.path)
        self._tensors = model.tensors
        self.config = model.config
        self._specs = {spec.name: spec for spec in model_tensors(self.config)}

    def weight(self, name: str) -> torch.Tensor:
        return self.packed(name).weight()

    def packed(self, name: str) -> PackedWeight:
        spec = self._specs[name]
        path, tensor = self._tensors[gguf_name(spec)]
        raw = torch.from_numpy(_raw(path, tensor, spec))
        return PackedWeight({"raw": raw}, partial(_dequantize, tensor, spec), host_only=True)

    def input_rounding(self, name: str) -> Rounding | None:
        _, tensor = self._tensors[gguf_name(self._specs[name])]
        return ggml_rounding(tensor.type)


def open_weights(artefact: Artefact) -> WeightSource:
    """The weights of ``artefact``; reads none of them yet."""
    return GgufWeights(artefact) if artefact.is_gguf else FolderWeights(artefact)


def _raw(path: Path, tensor: GgufTensor, spec: TensorSpec) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What is stored of one checkpoint tensor; of stacked experts only the wanted one."""
    experts = tensor.shape[0] if spec.expert is not None else 1
    each = tensor.nbytes // experts
    start = tensor.start + each * (spec.expert or 0)
    return np.fromfile(path, np.uint8, each, offset=start)


def _dequantize(
    tensor: GgufTensor, spec: TensorSpec, parts: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = parts["raw"].numpy().reshape(spec.shape[0] if len(spec.shape) == 2 else 1, -1)
    values = dequantize(rows, GGMLQuantizationType[tensor.type])
    return torch.from_numpy(np.ascontiguousarray(values.reshape(spec.shape), np.float32))
