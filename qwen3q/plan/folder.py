"""The plan of a safetensors folder: every tensor's name, dtype, shape and bytes, from a config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod

from qwen3q.checkpoint.shards import (
    DTYPES,
    lay_out_shards,
    layout_overhead_bytes,
)
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import TensorSpec, model_tensors
from qwen3q.plan.plan import Plan, PlannedTensor
from qwen3q.plan.scheme_fit import check_scheme
from qwen3q.plan.schemes import (
    FP8_BLOCK,
    NF4_BLOCK,
    NVFP4_GROUP,
    Layout,
    Scheme,
)

FLOAT_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""What the schemes without quantization cast to."""

SIDE_BYTES = 12_000
"""Config, card, manifest and generation config, about."""
REPORT_ROW_BYTES = 400
"""One linear in ``report.json``, about."""


def plan_folder(
    model: str,
    config: Qwen3Config,
    scheme: Scheme,
    *,
    dtypes: Mapping[str, str] | None = None,
    tokenizer_bytes: int | None = None,
) -> Plan:
    """Plans a folder of ``config`` in ``scheme``, in forward order.

    Tensors and the shards' headers are exact; the report and the card are not known before.

    Args:
        model: the model's name, for people.
        dtypes: dtype of each checkpoint tensor by name; the config's dtype where absent.
        tokenizer_bytes: bytes of the tokenizer's files where they are at hand; estimated from
            the vocabulary if None.

    Raises:
        UsageError: a linear of this model does not fit the scheme.
    """
    check_scheme(scheme, config)
    specs = model_tensors(config)
    tensors = tuple(
        tensor for spec in specs for tensor in planned_tensors(scheme, spec, config.dtype, dtypes)
    )
    shards = lay_out_shards(tensors)
    tokenizer = _tokenizer_bytes(config) if tokenizer_bytes is None else tokenizer_bytes
    linears = sum(scheme.at(spec.name) is not None for spec in specs if spec.is_linear)
    others = tokenizer + SIDE_BYTES + linears * REPORT_ROW_BYTES
    return Plan(
        model=model,
        format=scheme.name,
        tensors=tensors,
        parameters=sum(spec.numel for spec in specs),
        overhead_bytes=layout_overhead_bytes(shards) + others,
        overhead_exact=False,
    )


def planned_tensors(
    scheme: Scheme,
    spec: TensorSpec,
    default_dtype: str = "bfloat16",
    dtypes: Mapping[str, str] | None = None,
) -> list[PlannedTensor]:
    """What one checkpoint tensor becomes: itself, or a linear's codes, scales and zeros."""
    dtype = (dtypes or {}).get(spec.name, default_dtype)
    chosen = scheme.at(spec.name) if spec.is_linear else None
    if chosen is None:
        dtype = FLOAT_DTYPES.get(scheme.name, dtype)
        return [_tensor(spec.name, dtype, spec.shape, spec)]
    module = spec.name.removesuffix(".weight")
    return [
        _tensor(f"{module}.{suffix}", kind, shape, spec)
        for suffix, kind, shape in _parts(chosen, spec.shape, dtype)
    ]


def nf4_state_json(shape: tuple[int, ...], dtype: str) -> bytes:
    """The JSON that bitsandbytes packs into ``.quant_state.bitsandbytes__nf4``.

    Source: ``QuantState.as_dict(packed=True)`` and ``pack_dict_to_tensor`` in bitsandbytes.
    """
    state = {"quant_type": "nf4", "blocksize": NF4_BLOCK, "dtype": dtype, "shape": list(shape)}
    return json.dumps(state).encode()


def _tensor(name: str, dtype: str, shape: tuple[int, ...], spec: TensorSpec) -> PlannedTensor:
    return PlannedTensor(name, dtype, shape, prod(shape) * DTYPES[dtype][1], (spec,))


def _parts(
    scheme: Scheme, shape: tuple[int, ...], dtype: str
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Suffix, dtype and shape of each tensor that a quantized linear ``[out, in]`` is stored as."""
    out, columns = shape
    bits = scheme.bits
    groups = columns // scheme.group_of(columns)
    match scheme.layout:
        case Layout.GPTQ:
            yield "qweight", "int32", (columns * bits // 32, out)
            yield "qzeros", "int32", (groups, out * bits // 32)
            yield "scales", "float16", (groups, out)
            yield "g_idx", "int32", (columns,)
        case Layout.AWQ:
            yield "qweight", "int32", (columns, out * bits // 32)
            yield "qzeros", "int32", (groups, out * bits // 32)
            yield "scales", "float16", (groups, out)
        case Layout.PACK_QUANTIZED:
            yield "weight_packed", "int32", (out, columns * bits // 32)
            yield "weight_scale", "bfloat16", (out, groups)
            yield "weight_shape", "int64", (2,)
            if not scheme.symmetric:
                yield "weight_zero_point", "int32", (out * bits // 32, groups)
        case Layout.INT_QUANTIZED:
            yield "weight", "int8", shape
            yield "weight_scale", "bfloat16", (out, 1)
        case Layout.BNB_NF4:
            state = len(nf4_state_json(shape, dtype))
            yield "weight", "uint8", (out * columns // 2, 1)
            yield "weight.absmax", "float32", (out * columns // NF4_BLOCK,)
            yield "weight.quant_map", "float32", (16,)
            yield "weight.quant_state.bitsandbytes__nf4", "uint8", (state,)
        case Layout.BNB_INT8:
            yield "weight", "int8", shape
            yield "SCB", "float32", (out,)
            yield "weight_format", "uint8", ()
        case Layout.FP8:
            blocks = (-(-out // FP8_BLOCK), -(-columns // FP8_BLOCK))
            yield "weight", "float8_e4m3fn", shape
            yield "weight_scale_inv", "bfloat16", blocks
        case Layout.NVFP4:
            yield "weight_packed", "uint8", (out, columns // 2)
            yield "weight_scale", "float8_e4m3fn", (out, columns // NVFP4_GROUP)
            yield "weight_global_scale", "float32", (1,)
            yield "input_global_scale", "float32", (1,)


def _tokenizer_bytes(config: Qwen3Config) -> int:
    """At 151,936 entries tokenizer.json has 11.42 MB, vocab.json and merges.txt 4.45 MB."""
    return round(config.vocab_size * 104.5)
