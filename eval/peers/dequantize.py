"""Float weights of any quantized checkpoint folder, read on its own: no line of `qwen3q` is used.

The judge measures ours and the peers' files through this one reader, so an error that a writer and
its own reader share would show here. Layouts: GPTQ v1 and v2, AWQ gemm, compressed-tensors
(pack-quantized, int-quantized), bitsandbytes (nf4, fp4, int8), and plain float.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output 8c + AWQ_ORDER[i] sits in nibble i of column c (AutoAWQ's gemm layout)."""


class LayoutError(ValueError):
    """The folder's tensors do not follow a layout known here."""


@dataclass(frozen=True, slots=True)
class FloatCheckpoint:
    """Weights `[out, in]` in float32 under plain `.weight` names; what serving does to inputs."""

    weights: dict[str, Tensor]
    layout: str
    int8_inputs: frozenset[str]
    """Linears whose input is quantized to int8 per token when the model is served."""


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, with `quantization_config` taken from `quantize_config.json` if only there."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    beside = folder / "quantize_config.json"
    if "quantization_config" not in config and beside.exists():
        config["quantization_config"] = {"quant_method": "gptq", **json.loads(beside.read_text())}
    return config


def dequantize_folder(folder: Path) -> FloatCheckpoint:
    """Every weight of a checkpoint folder in float32. Raises LayoutError on a leftover tensor."""
    quant = read_config(folder).get("quantization_config") or {}
    tensors = {name: tensor for file in _files(folder) for name, tensor in _tensors(file)}
    method = quant.get("quant_method", "float")
    readers: dict[str, Callable[[], None]] = {
        "float": lambda: None,
        "gptq": lambda: _read_gptq(tensors, quant),
        "awq": lambda: _read_awq(tensors),
        "compressed-tensors": lambda: _read_compressed(tensors),
        "bitsandbytes": lambda: _read_bitsandbytes(tensors),
    }
    if method == "auto-round":
        method = "awq" if "awq" in str(quant.get("packing_format", "")) else "gptq"
    if method not in readers:
        raise LayoutError(f"{folder}: quant_method {method!r} is not known to the judge")
    integer = set(_modules(tensors, ".weight_scale"))
    readers[method]()
    leftover = [n for n, t in tensors.items() if not t.is_floating_point()]
    if leftover:
        raise LayoutError(f"{folder}: {len(leftover)} tensors of no known layout: {leftover[:3]}")
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    return FloatCheckpoint(weights, _layout_name(method, quant), _int8_inputs(quant, integer))


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Rows of int32 `[rows, words]` as `bits`-wide fields, low bit first: `[rows, count]`.

    For 2, 4 and 8 bits a field never crosses a word; for 3 bits it does (32 fields in 3 words).
    """
    data = words.long() & 0xFFFFFFFF
    start = torch.arange(count) * bits
    low, shift = start // 32, start % 32
    high = (low + 1).clamp(max=data.shape[1] - 1)
    wide = data[:, low] | (data[:, high] << 32)
    fields: Tensor = (wide >> shift) & (2**bits - 1)
    return fields.to(torch.int32)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [
            folder / n for n in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LayoutError(f"{folder}: no safetensors file")
    return files


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield name, handle.get_tensor(name)


def _layout_name(method: str, quant: dict[str, Any]) -> str:
    if method == "compressed-tensors":
        return f"compressed-tensors {quant.get('format')}"
    if method == "gptq":
        return f"gptq {quant.get('checkpoint_format', 'gptq')}"
    return method


def _modules(tensors: dict[str, Tensor], suffix: str) -> list[str]:
    return [name[: -len(suffix)] for name in list(tensors) if name.endswith(suffix)]


def _read_gptq(tensors: dict[str, Tensor], quant: dict[str, Any]) -> None:
    offset = 0 if quant.get("checkpoint_format") == "gptq_v2" else 1
    for module in _modules(tensors, ".qweight"):
        words = tensors.pop(f"{module}.qweight")
        zero_words = tensors.pop(f"{module}.qzeros")
        scales = tensors.pop(f"{module}.scales").float()
        groups, n = scales.shape
        bits = zero_words.shape[1] * 32 // n
        k = words.shape[0] * 32 // bits
        group = int(quant["group_size"])
        default_index = torch.arange(k) // (group if group > 0 else k)
        index = tensors.pop(f"{module}.g_idx", default_index).long()
        if int(index.max()) >= groups:
            raise LayoutError(f"{module}: g_idx names group {int(index.max())} of {groups}")
        q = unpack_words(words.T.contiguous(), bits, k).T
        zero = unpack_words(zero_words, bits, n) + offset
        tensors[f"{module}.weight"] = ((q - zero[index]).float() * scales[index]).T.contiguous()


def _read_awq(tensors: dict[str, Tensor]) -> None:
    for module in _modules(tensors, ".qweight"):
        scales = tensors.pop(f"{module}.scales").float()
        q = _awq_unpack(tensors.pop(f"{module}.qweight"))
        zero = _awq_unpack(tensors.pop(f"{module}.qzeros"))
        k, n = q.shape
        index = torch.arange(k) // (k // scales.shape[0])
        if zero.shape != scales.shape or scales.shape[1] != n:
            raise LayoutError(f"{module}: scales {tuple(scales.shape)} do not fit [{k}, {n}]")
        tensors[f"{module}.weight"] = ((q - zero[index]).float() * scales[index]).T.contiguous()


def _awq_unpack(words: Tensor) -> Tensor:
    rows, columns = words.shape
    out = torch.empty(rows, columns, 8, dtype=torch.int32)
    for nibble, position in enumerate(AWQ_ORDER):
        out[:, :, position] = (words >> (4 * nibble)) & 15
    return out.reshape(rows, columns * 8)


def _read_compressed(tensors: dict[str, Tensor]) -> None:
    for module in _modules(tensors, ".weight_packed"):
        n, k = (int(x) for x in tensors.pop(f"{module}.weight_shape"))
        words = tensors.pop(f"{module}.weight_packed")
        bits = words.shape[1] * 32 // k
        middle = 2 ** (bits - 1)
        q = unpack_words(words, bits, k) - middle
        scale = tensors.pop(f"{module}.weight_scale").float()
        groups = scale.shape[1]
        zero_words = tensors.pop(f"{module}.weight_zero_point", None)
        if zero_words is None:
            zero = torch.zeros(n, groups, dtype=torch.int32)
        elif zero_words.shape == scale.shape:
            zero = zero_words.int()
        else:
            zero = unpack_words(zero_words.T.contiguous(), bits, n).T - middle
        index = tensors.pop(
            f"{module}.weight_g_idx", torch.arange(k) // math.ceil(k / groups)
        ).long()
        tensors[f"{module}.weight"] = (q - zero[:, index]).float() * scale[:, index]
    for module in _modules(tensors, ".weight_scale"):
        weight, scale = tensors[f"{module}.weight"], tensors.pop(f"{module}.weight_scale").float()
        if weight.dtype != torch.int8:
            raise LayoutError(f"{module}: a scale beside a weight of {weight.dtype}")
        if bool(tensors.pop(f"{module}.weight_zero_point", torch.zeros(1)).any()):
            raise LayoutError(f"{module}: int-quantized with a zero point")
        tensors[f"{module}.weight"] = weight.float() * scale


def _read_bitsandbytes(tensors: dict[str, Tensor]) -> None:
    for kind in ("nf4", "fp4"):
        state_name = f".weight.quant_state.bitsandbytes__{kind}"
        for module in _modules(tensors, state_name):
            state = json.loads(bytes(tensors.pop(f"{module}{state_name}").tolist()).decode())
            absmax = tensors.pop(f"{module}.weight.absmax")
            if absmax.dtype == torch.uint8:
                table = tensors.pop(f"{module}.weight.nested_quant_map").float()
                nested = tensors.pop(f"{module}.weight.nested_absmax").float()
                block = torch.arange(absmax.numel()) // int(state["nested_blocksize"])
                absmax = table[absmax.long()] * nested[block] + float(state["nested_offset"])
            codes = tensors[f"{module}.weight"].flatten().long()
            levels = tensors.pop(f"{module}.weight.quant_map").float()
            values = levels[torch.stack([codes >> 4, codes & 15], dim=1).flatten()]
            values = values.reshape(-1, int(state["blocksize"])) * absmax.float()[:, None]
            tensors[f"{module}.weight"] = values.reshape(state["shape"])
    for module in _modules(tensors, ".SCB"):
        tensors.pop(f"{module}.weight_format", None)
        scale = tensors.pop(f"{module}.SCB").float()[:, None] / 127
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].float() * scale


def _int8_inputs(quant: dict[str, Any], integer: set[str]) -> frozenset[str]:
    """Of the linears stored as integers, those that the config gives dynamic int8 inputs."""
    groups = list((quant.get("config_groups") or {}).values())
    chosen = set()
    for module in integer if groups else ():
        inputs = _group_of(module, groups).get("input_activations")
        if not inputs:
            continue
        if inputs["num_bits"] != 8 or not inputs["dynamic"] or inputs["strategy"] != "token":
            raise LayoutError(f"{module}: input activations not simulated: {inputs}")
        chosen.add(module)
    return frozenset(chosen)


def _group_of(module: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The config group of a linear: its name is matched first, then patterns, then the class."""
    for group in groups:
        if module in group["targets"]:
            return group
    for group in groups:
        patterns = [t.removeprefix("re:") for t in group["targets"] if t.startswith("re:")]
        if any(re.match(pattern, module) for pattern in patterns):
            return group
    for group in groups:
        if "Linear" in group["targets"]:
            return group
    raise LayoutError(f"{module}: stored as integers, but no config group names it")
