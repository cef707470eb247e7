"""Which layout every linear of a folder is stored in, from names, dtypes and shapes alone.

Works on folders that other tools wrote: configs differ between tools, stored tensors do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from qwen3q.checkpoint.safetensors import TensorInfo
from qwen3q.errors import CheckpointError
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import TensorSpec, model_tensors

_REFETCH = "Config and weights may be of different models; fetch the model again."


class Storage(StrEnum):
    """How one checkpoint tensor is stored."""

    FLOAT = "float"
    GPTQ = "gptq"
    AWQ = "awq"
    PACK_QUANTIZED = "pack-quantized"
    INT_QUANTIZED = "int-quantized"
    FP8_BLOCKS = "fp8"
    FP8_CHANNELS = "float-quantized"
    NVFP4 = "nvfp4-pack-quantized"
    BNB_4BIT = "bnb-4bit"
    BNB_INT8 = "bnb-int8"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One tensor of the model as a folder stores it.

    Attributes:
        spec: which tensor of the model.
        storage: its layout.
        bits: width of a stored weight.
        group_size: inputs that share a scale; ``in_features`` for one scale per output. For NF4
            it is left 0: the block size stands in the data.
        parts: stored tensor name by suffix.
    """

    spec: TensorSpec
    storage: Storage
    bits: int
    group_size: int
    parts: Mapping[str, str]


def recognise(
    config: Qwen3Config, tensors: Mapping[str, TensorInfo], where: str
) -> dict[str, StoredWeight]:
    """The storage of every tensor of the model, by checkpoint name.

    Args:
        tensors: headers of the folder's tensors.
        where: the folder, for messages.

    Raises:
        CheckpointError: a tensor is missing, is stored in a way this toolkit does not know, or
            has a shape that does not fit the model; or a stored tensor belongs to nothing.
    """
    modules: dict[str, dict[str, str]] = {}
    specs = model_tensors(config)
    known = {spec.name.removesuffix(".weight") for spec in specs} | {"lm_head"}
    for name in tensors:
        module = _module(name, known)
        if module is None:
            raise CheckpointError(
                f"{where} holds {name}, which belongs to nothing in the model.", _REFETCH
            )
        modules.setdefault(module, {})[name.removeprefix(f"{module}.")] = name
    found = {}
    for spec in specs:
        parts = modules.get(spec.name.removesuffix(".weight"))
        if parts is None:
            raise CheckpointError(f"{where} has nothing stored for {spec.name}.", _REFETCH)
        found[spec.name] = _recognise_one(spec, parts, tensors, where)
    return found


def zero_offset(quantization: Mapping[str, Any]) -> int:
    """What GPTQ's stored zeros lack: 1 in version 1, 0 in version 2."""
    return 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1


def _module(name: str, known: set[str]) -> str | None:
    """The module that a stored tensor belongs to: its longest prefix that is one."""
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return None


def _recognise_one(
    spec: TensorSpec, parts: Mapping[str, str], tensors: Mapping[str, TensorInfo], where: str
) -> StoredWeight:
    infos = {suffix: tensors[name] for suffix, name in parts.items()}
    weight = infos.get("weight")
    if set(parts) == {"weight"} and weight is not None and weight.dtype[0] in "FB":
        _require(spec, infos, {"weight": spec.shape}, where)
        return StoredWeight(spec, Storage.FLOAT, 8 * weight.nbytes // spec.numel, 0, parts)
    if len(spec.shape) == 2:
        out, columns = spec.shape
        for test in (_gptq_or_awq, _packed, _whole_bytes, _four_bits):
            match = test(out, columns, infos)
            if match is not None:
                storage, bits, group, shapes = match
                _require(spec, infos, shapes, where)
                return StoredWeight(spec, storage, bits, group, parts)
    raise CheckpointError(
        f"{where} stores {spec.name} as {', '.join(sorted(parts))}, a layout that is not known.",
        f"Layouts that are read: {', '.join(Storage)}.",
    )


_Shapes = dict[str, tuple[int, ...]]
_Match = tuple[Storage, int, int, _Shapes]
"""Storage, bits, group size, and the shapes that its parts must have."""

_Infos = Mapping[str, TensorInfo]


def _gptq_or_awq(out: int, columns: int, infos: _Infos) -> _Match | None:
    if not {"qweight", "qzeros", "scales"} <= infos.keys():
        return None
    groups = _length(infos["scales"].shape, 0)
    if groups == 0 or columns < groups:
        return None
    shapes: _Shapes
    if infos["qweight"].shape == (columns, out // 8):
        shapes = {"qzeros": (groups, out // 8), "scales": (groups, out)}
        return Storage.AWQ, 4, columns // groups, shapes
    bits = 32 * _length(infos["qweight"].shape, 0) // columns
    if bits not in (2, 3, 4, 8):
        return None
    shapes = {
        "qweight": (columns * bits // 32, out),
        "qzeros": (groups, out * bits // 32),
        "scales": (groups, out),
    }
    if "g_idx" in infos:
        shapes["g_idx"] = (columns,)
    return Storage.GPTQ, bits, -(-columns // groups), shapes


def _packed(out: int, columns: int, infos: _Infos) -> _Match | None:
    if not {"weight_packed", "weight_scale"} <= infos.keys():
        return None
    groups = _length(infos["weight_scale"].shape, 1)
    if groups == 0 or columns < groups:
        return None
    packed = infos["weight_packed"]
    shapes: _Shapes
    if packed.dtype == "U8":
        shapes = {"weight_packed": (out, columns // 2), "weight_scale": (out, groups)}
        return Storage.NVFP4, 4, columns // groups, shapes
    bits = 32 * _length(packed.shape, 1) // columns
    if bits not in (2, 4, 8) or "weight_shape" not in infos:
        return None
    shapes = {
        "weight_packed": (out, -(-columns * bits // 32)),
        "weight_scale": (out, groups),
        "weight_shape": (2,),
    }
    if "weight_zero_point" in infos:
        shapes["weight_zero_point"] = (-(-out * bits // 32), groups)
    if "weight_g_idx" in infos:
        shapes["weight_g_idx"] = (columns,)
    return Storage.PACK_QUANTIZED, bits, columns // groups, shapes


def _whole_bytes(out: int, columns: int, infos: _Infos) -> _Match | None:
    weight = infos.get("weight")
    if weight is None:
        return None
    shapes: _Shapes = {"weight": (out, columns)}
    if weight.dtype == "I8" and "SCB" in infos:
        return Storage.BNB_INT8, 8, columns, {**shapes, "SCB": (out,)}
    if weight.dtype == "F8_E4M3" and "weight_scale_inv" in infos:
        blocks = (-(-out // 128), -(-columns // 128))
        return Storage.FP8_BLOCKS, 8, 128, {**shapes, "weight_scale_inv": blocks}
    scale = infos.get("weight_scale")
    if scale is None:
        return None
    if weight.dtype == "I8":
        groups = _length(scale.shape, 1)
        if groups and columns % groups == 0:
            shapes["weight_scale"] = (out, groups)
            return Storage.INT_QUANTIZED, 8, columns // groups, shapes
    if weight.dtype == "F8_E4M3" and scale.shape in ((out, 1), (out,), (1,), ()):
        return Storage.FP8_CHANNELS, 8, columns, shapes
    return None


def _four_bits(out: int, columns: int, infos: _Infos) -> _Match | None:
    states = [s for s in infos if s.startswith("weight.quant_state.bitsandbytes__")]
    if len(states) != 1 or not {"weight", "weight.absmax", "weight.quant_map"} <= infos.keys():
        return None
    if infos["weight"].nbytes * 2 != out * columns:
        return None
    return Storage.BNB_4BIT, 4, 0, {"weight.quant_map": (16,)}


def _length(shape: Sequence[int], dimension: int) -> int:
    return shape[dimension] if len(shape) == 2 else 0


def _require(
    spec: TensorSpec, infos: _Infos, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    for suffix, shape in shapes.items():
        if infos[suffix].shape != shape:
            raise CheckpointError(
                f"{where}: {infos[suffix].name} has shape {list(infos[suffix].shape)}; "
                f"for {spec.name} it should be {list(shape)}.",
                _REFETCH,
            )
