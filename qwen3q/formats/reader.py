"""Any quantized Qwen3 folder, read back as float32 weights under the checkpoint's own names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.torch_io import read_tensor
from qwen3q.closing import Closing
from qwen3q.errors import CheckpointError
from qwen3q.formats import awq, bitsandbytes, compressed_tensors, fp8, gptq
from qwen3q.formats.packed import PackedWeight
from qwen3q.formats.recognise import Storage, StoredWeight, recognise, zero_offset
from qwen3q.models.config import parse_config, read_config_json


class QuantizedFolder(Closing):
    """A model folder in any layout, quantized or not.

    Attributes:
        config: its shape.
        quantization: ``config.json``'s ``quantization_config``; empty if it has none.
        weights: how each tensor of the model is stored, by checkpoint name.
        activation_bits: width that inputs of linears are rounded to at inference, or None.
    """

    def __init__(self, folder: Path) -> None:
        """Opens ``folder`` and holds every stored tensor against the model; reads no weight.

        Raises:
            ModelError: its config is no Qwen3's.
            CheckpointError: a tensor is missing, unknown or misshapen.
        """
        raw = read_config_json(folder)
        self.config = parse_config(raw, str(folder / "config.json"))
        self.quantization: dict[str, Any] = raw.get("quantization_config") or {}
        self.activation_bits = _activation_bits(self.quantization)
        self._checkpoint = Checkpoint(folder)
        self.weights = recognise(self.config, self._checkpoint.tensors, str(folder))

    def close(self) -> None:
        self._checkpoint.close()

    def weight(self, name: str) -> torch.Tensor:
        """One tensor, float32, in its checkpoint shape; a linear is dequantized ``[out, in]``.

        Raises:
            CheckpointError: no such tensor, or stored data that make no sense.
        """
        weight = self.packed(name).weight()
        for part in self.weights[name].parts.values():
            self._checkpoint.release(part)
        return weight

    def packed(self, name: str) -> PackedWeight:
        """One tensor as it is stored; its parts are views of the files.

        Raises:
            CheckpointError: no such tensor, or values that are not finite.
        """
        if name not in self.weights:
            raise CheckpointError(f"The model has no tensor {name}.")
        stored = self.weights[name]
        parts = {
            suffix: read_tensor(self._checkpoint, part) for suffix, part in stored.parts.items()
        }
        return PackedWeight(parts, partial(self._dequantize, stored))

    def _dequantize(
        self, stored: StoredWeight, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        match stored.storage:
            case Storage.FLOAT:
                return tensors["weight"].float()
            case Storage.GPTQ:
                offset = zero_offset(self.quantization)
                return gptq.dequantize(tensors, stored.bits, zero_offset=offset)
            case Storage.AWQ:
                return awq.dequantize(tensors)
            case Storage.PACK_QUANTIZED:
                return compressed_tensors.dequantize_words(tensors, stored.bits, stored.spec.shape)
            case Storage.INT_QUANTIZED:
                return compressed_tensors.dequantize_int8(tensors)
            case Storage.FP8_BLOCKS:
                return fp8.dequantize(tensors)
            case Storage.FP8_CHANNELS:
                return fp8.dequantize_channels(tensors)
            case Storage.BNB_4BIT:
                return bitsandbytes.dequantize_4bit(tensors, stored.spec.shape)
            case Storage.BNB_INT8:
                return bitsandbytes.dequantize_int8(tensors)
            case Storage.NVFP4:
                raise CheckpointError(
                    f"{stored.spec.name} is stored as NVFP4, which is recognised but not read."
                )


def _activation_bits(quantization: dict[str, Any]) -> int | None:
    for group in (quantization.get("config_groups") or {}).values():
        inputs = (group or {}).get("input_activations")
        if inputs:
            return int(inputs.get("num_bits") or 8)
    return None
