"""Which models a scheme fits, by the shapes of their linears."""

from __future__ import annotations

from dataclasses import replace

from qwen3q.errors import UsageError
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import TensorSpec, model_tensors
from qwen3q.plan.schemes import (
    GROUP_SIZES,
    NF4_BLOCK,
    NVFP4_GROUP,
    Layout,
    Scheme,
    codes_per_pack,
    group_size_name,
)


def check_scheme(scheme: Scheme, config: Qwen3Config) -> None:
    """Refuses a scheme that a linear of this model can't be stored in.

    Raises:
        UsageError: names the first such linear and a group size that fits, if one does; or an
            override that is about no linear of the model; or overrides that leave it none.
    """
    linears = [spec for spec in model_tensors(config) if spec.is_linear]
    for override in scheme.overrides:
        if not any(override.matches(spec.name.removesuffix(".weight")) for spec in linears):
            raise UsageError(
                f"The override for {override.pattern!r} matches no linear of this model.",
                f"They are called {linears[0].name.removesuffix('.weight')} and so on; "
                "* stands for any text.",
            )
    if scheme.overrides and all(scheme.at(spec.name) is None for spec in linears):
        raise UsageError(
            f"The overrides keep every linear in float: nothing is left for {scheme.name}.",
            "Take one of them out, or write bf16.",
        )
    for spec in linears:
        chosen = scheme.at(spec.name)
        if chosen is None:
            continue
        reason = misfit(chosen, spec.shape)
        if reason:
            fitting = fitting_group_sizes(scheme, config)
            raise UsageError(
                f"{chosen.name} can't hold {spec.name}: {reason}.",
                f"Group sizes that fit this model: {', '.join(map(group_size_name, fitting))}."
                if fitting
                else "Take another format, or keep this tensor in float with an override.",
            )


def fitting_group_sizes(scheme: Scheme, config: Qwen3Config) -> list[int]:
    """The group sizes in which every linear of this model can be stored, largest group last."""
    if not scheme.is_uniform or scheme.layout is Layout.INT_QUANTIZED:
        return []
    shapes = {spec.shape for spec in model_tensors(config) if _stored(scheme, spec)}
    return [
        size
        for size in GROUP_SIZES
        if not any(misfit(replace(scheme, group_size=size), shape) for shape in shapes)
    ]


def misfit(scheme: Scheme, shape: tuple[int, ...]) -> str:
    """Why a linear of this shape ``[out, in]`` can't be stored, or an empty string."""
    out, columns = shape
    group = scheme.group_of(columns)
    if scheme.is_uniform and columns % group:
        return f"its {columns} inputs do not divide into groups of {group}"
    match scheme.layout:
        case Layout.GPTQ | Layout.AWQ:
            if out % codes_per_pack(scheme.bits):
                return f"its {out} outputs do not divide by {codes_per_pack(scheme.bits)}"
            if scheme.layout is Layout.GPTQ and columns % codes_per_pack(scheme.bits):
                return f"its {columns} inputs do not divide by {codes_per_pack(scheme.bits)}"
        case Layout.PACK_QUANTIZED:
            if columns % codes_per_pack(scheme.bits):
                return f"its {columns} inputs do not divide by {codes_per_pack(scheme.bits)}"
            if not scheme.symmetric and out % codes_per_pack(scheme.bits):
                return f"its {out} outputs do not divide by {codes_per_pack(scheme.bits)}"
        case Layout.BNB_NF4:
            if out * columns % NF4_BLOCK or out % 32:
                return f"its {out} outputs do not divide by 32"
        case Layout.BNB_INT8:
            if out % 32:
                return f"its {out} outputs do not divide by 32"
        case Layout.NVFP4:
            if columns % NVFP4_GROUP:
                return f"its {columns} inputs do not divide by {NVFP4_GROUP}"
    return ""


def _stored(scheme: Scheme, spec: TensorSpec) -> bool:
    return spec.is_linear and scheme.at(spec.name) is not None
