"""Over how many GPUs engines can split a scheme's linears."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, TensorSpec, model_tensors
from qwen3q.plan.schemes import FP8_BLOCK, PER_CHANNEL, Layout, Scheme, codes_per_pack


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """Whether engines can split a scheme over ``size`` GPUs.

    Attributes:
        reason: why not, naming the first linear; empty if they can.
    """

    size: int
    reason: str

    @property
    def is_legal(self) -> bool:
        return not self.reason


def tensor_parallel_legality(
    config: Qwen3Config, scheme: Scheme, sizes: tuple[int, ...] = (1, 2, 4, 8)
) -> list[TensorParallel]:
    """Which tensor-parallel sizes this scheme allows.

    o_proj and down_proj are cut along their inputs, so each part must hold whole groups; q, k, v,
    gate and up along their outputs, so each part must hold whole packed words (vLLM's
    ``RowParallelLinear`` and ``ColumnParallelLinear``; k and v are copied when heads run out).
    """
    return [TensorParallel(size, _split_misfit(config, scheme, size)) for size in sizes]


def suggest_group_size(config: Qwen3Config, scheme: Scheme, size: int) -> int | None:
    """The largest group size that ``size`` GPUs can split, or None if no group size helps."""
    for group in (128, 64, 32, PER_CHANNEL):
        candidate = replace(scheme, group_size=group)
        if scheme.is_uniform and not _split_misfit(config, candidate, size):
            return group
    return None


def _split_misfit(config: Qwen3Config, scheme: Scheme, size: int) -> str:
    if config.num_attention_heads % size:
        return f"{config.num_attention_heads} attention heads do not divide by {size}"
    seen: set[tuple[Role, tuple[int, ...], Scheme]] = set()
    for spec in model_tensors(config):
        chosen = scheme.at(spec.name) if spec.is_linear else None
        if chosen is None or (spec.role, spec.shape, chosen) in seen:
            continue
        seen.add((spec.role, spec.shape, chosen))
        reason = _linear_split_misfit(config, chosen, spec, size)
        if reason:
            return f"{spec.name}: {reason}"
    return ""


def _linear_split_misfit(config: Qwen3Config, scheme: Scheme, spec: TensorSpec, size: int) -> str:
    out, columns = spec.shape
    if spec.role in (Role.O, Role.DOWN):
        whole, unit, what = columns, _input_unit(scheme), "inputs"
    else:
        whole, unit, what = out, _output_unit(scheme), "outputs"
    if spec.role in (Role.K, Role.V):
        size = min(size, config.num_key_value_heads)
    if whole % size:
        return f"{whole} {what} do not divide by {size}"
    part = whole // size
    return f"{part} of {whole} {what} per GPU do not divide by {unit}" if part % unit else ""


def _input_unit(scheme: Scheme) -> int:
    if scheme.layout is Layout.FP8:
        return FP8_BLOCK
    if scheme.group_size != PER_CHANNEL and scheme.layout is not Layout.BNB_NF4:
        return scheme.group_size
    return codes_per_pack(scheme.bits)


def _output_unit(scheme: Scheme) -> int:
    match scheme.layout:
        case Layout.GPTQ | Layout.AWQ:
            return codes_per_pack(scheme.bits)
        case Layout.FP8:
            return FP8_BLOCK
        case _:
            return 1
