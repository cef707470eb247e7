"""llama.cpp's type mix: which tensor gets which type in a named file type.

Follows ``llama_tensor_get_type`` of llama.cpp's ``llama-quant.cpp`` for the architectures qwen3
and qwen3moe. There every layer has one attn_v and one ffn_down, so its running counters are the
layer's index and each decision stands alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.models.tensors import Role
from qwen3q.plan.gguf_types import GGML_TYPES, FileType, GgmlType

_IQ1_IQ2 = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_EIGHT_EXPERTS_Q5_OUTPUT = frozenset(
    {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XS", "IQ3_XXS", "IQ3_S", "IQ3_M"}
    | {"IQ4_NL", "IQ4_XS"}
)
_FALLBACK = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True, slots=True)
class MixContext:
    """What a choice depends on beside the tensor itself."""

    file_type: FileType
    n_layers: int
    n_experts: int
    gqa: int
    tied: bool
    has_imatrix: bool


def choose_type(
    context: MixContext, role: Role, layer: int | None, columns: int, merged_experts: bool
) -> GgmlType:
    """The type of one tensor.

    Args:
        columns: length of a row (input features).
        merged_experts: True for a 3-D tensor of several experts.
    """
    if role.value.endswith("norm") or role in (
        Role.INPUT_NORM,
        Role.POST_NORM,
        Role.ROUTER,
    ):
        return GGML_TYPES["F32"]
    default = context.file_type.default
    if not default.is_quantized:
        return default
    return _fallback(
        GGML_TYPES[_mixed(context, role, layer or 0, columns, merged_experts)], columns
    )


def requires_imatrix(context: MixContext, role: Role, chosen: GgmlType) -> bool:
    """Whether llama.cpp refuses this tensor without an importance matrix."""
    if role in (Role.EMBED, Role.LM_HEAD):
        return False
    if chosen.name == "Q2_K":
        return context.file_type.name == "Q2_K_S"
    return chosen.name in ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")


def _fallback(chosen: GgmlType, columns: int) -> GgmlType:
    """A type whose blocks divide the row (``tensor_type_fallback``)."""
    if columns % chosen.block_size == 0:
        return chosen
    smaller = GGML_TYPES[_FALLBACK.get(chosen.name, chosen.name)]
    return smaller if columns % smaller.block_size == 0 else GGML_TYPES["F16"]


def _mixed(context: MixContext, role: Role, layer: int, columns: int, merged_experts: bool) -> str:
    ftype = context.file_type.name
    default = context.file_type.default
    if role is Role.LM_HEAD or (role is Role.EMBED and context.tied):
        return _output(ftype, default, columns)
    if ftype == "MXFP4_MOE":
        return "MXFP4" if merged_experts else "Q8_0"
    if role is Role.EMBED:
        return _embedding(ftype, default)
    if ftype in _IQ1_IQ2:
        return _low_bit(context, role, layer)
    rule = {
        Role.V: _attention_v,
        Role.K: _attention_k,
        Role.Q: _attention_q,
        Role.O: _attention_output,
        Role.DOWN: _ffn_down,
        Role.GATE: _ffn_gate_up,
        Role.UP: _ffn_gate_up,
    }[role]
    return rule(context, ftype, layer) or default.name


def _more_bits(layer: int, n_layers: int) -> bool:
    """First and last eighth, and every third layer between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _output(ftype: str, default: GgmlType, columns: int) -> str:
    if ftype == "MXFP4_MOE" or columns % default.block_size:
        return "Q8_0"
    if ftype in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "Q5_K"
    return "Q8_0" if default.name == "Q8_0" else "Q6_K"


def _embedding(ftype: str, default: GgmlType) -> str:
    if ftype in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"):
        return "Q2_K"
    if ftype in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    return default.name


def _low_bit(context: MixContext, role: Role, layer: int) -> str:
    """IQ1 and IQ2: the few tensors that keep more bits."""
    ftype = context.file_type.name
    larger = ftype in ("IQ2_S", "IQ2_M")
    if role is Role.V:
        if context.gqa >= 4 or context.n_experts >= 4:
            return "Q4_K"
        return "IQ3_S" if larger else "Q2_K"
    if role is Role.K and context.n_experts == 8:
        return "Q4_K"
    if role is Role.DOWN and layer < context.n_layers // 8:
        return "IQ3_S" if larger else "Q2_K"
    if role is Role.O:
        if context.n_experts == 8:
            return "Q5_K"
        if ftype in ("IQ1_S", "IQ1_M"):
            return "IQ2_XXS"
        if larger:
            return "IQ3_S"
    return context.file_type.default.name


def _attention_v(context: MixContext, ftype: str, layer: int) -> str | None:
    if context.n_experts == 8:
        return "Q8_0"
    grouped = context.gqa >= 4
    match ftype:
        case "Q2_K":
            return "Q4_K" if grouped else "Q3_K"
        case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
            return "Q4_K"
        case "IQ3_XXS":
            return "Q4_K" if grouped else "IQ3_XXS" if context.has_imatrix else "IQ3_S"
        case "IQ3_M":
            return "Q4_K"
        case "Q3_K_M":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if grouped:
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, context.n_layers):
            return "Q6_K"
        case "Q4_K_S" if layer < 4:
            return "Q5_K"
    return None


def _attention_k(context: MixContext, ftype: str, layer: int) -> str | None:
    if context.n_experts == 8:
        return "Q8_0"
    return _attention_q(context, ftype, layer)


def _attention_q(context: MixContext, ftype: str, layer: int) -> str | None:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(ftype)


def _attention_output(context: MixContext, ftype: str, layer: int) -> str | None:
    if context.n_experts == 8:
        return "Q5_K" if ftype in _EIGHT_EXPERTS_Q5_OUTPUT else None
    return {
        "Q2_K": "Q3_K",
        "IQ3_XXS": "IQ3_S",
        "Q3_K_M": "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ3_M": "Q4_K",
    }.get(ftype)


def _ffn_down(context: MixContext, ftype: str, layer: int) -> str | None:
    n_layers, imatrix = context.n_layers, context.has_imatrix
    first_eighth = layer < n_layers // 8
    match ftype:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S" if first_eighth:
            return "Q4_K"
        case "IQ3_XXS" if not imatrix:
            return "Q4_K" if first_eighth else "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if layer < n_layers // 16 else "Q4_K"
        case "IQ3_M" if first_eighth or (context.n_experts == 8 and _more_bits(layer, n_layers)):
            return "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, n_layers):
            return "Q6_K"
        case "IQ4_NL" | "IQ4_XS" if first_eighth and not imatrix:
            return "Q5_K"
        case "Q4_K_S" if first_eighth:
            return "Q5_K"
        case "Q4_0" if imatrix and first_eighth:
            return "Q4_1"
        case "Q5_0" if imatrix and first_eighth:
            return "Q5_1"
    return None


def _ffn_gate_up(context: MixContext, ftype: str, layer: int) -> str | None:
    if ftype == "IQ3_XS" and context.n_layers // 8 <= layer < 7 * context.n_layers // 8:
        return "IQ3_XXS"
    return None
