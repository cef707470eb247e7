"""What to change when a run does not fit: each change tried, with what it brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from qwen3q.errors import UsageError
from qwen3q.memory.estimate import Estimate, Verdict, default_engine, estimate
from qwen3q.memory.gpus import Gpu
from qwen3q.memory.settings import Engine, Settings, is_quantized
from qwen3q.memory.source import Model
from qwen3q.memory.weights import FORMATS, Weights

_SMALLER_FIRST_TRIED = 3


@dataclass(frozen=True, slots=True)
class Advice:
    """One change that makes the run fit.

    Attributes:
        text: for people.
        options: what to add to the command.
        total: bytes on the GPUs after it.
    """

    text: str
    options: str
    total: int


class _Change(NamedTuple):
    """What to try; ``options`` are what to add to the command."""

    text: str
    options: str
    weights: Weights
    settings: Settings


def advise(model: Model, found: Estimate, gpus: Sequence[Gpu]) -> list[Advice]:
    """Changes that make ``found`` fit, least costly first; empty if none does."""
    if found.verdict is not Verdict.NO:
        return []
    changes = [
        *_cache_changes(found),
        *_context_changes(found),
        *_offload_changes(model, found, gpus),
        *_format_changes(model, found),
    ]
    advice = []
    for change in changes:
        after = _try(model, found.engine, change.weights, change.settings, gpus)
        if after is not None and after.verdict is not Verdict.NO:
            advice.append(Advice(change.text, change.options, after.total))
    return advice


def _cache_changes(found: Estimate) -> list[_Change]:
    settings, weights = found.settings, found.weights
    changes = []
    if found.engine is Engine.LLAMA_CPP and not is_quantized(settings.type_k):
        if settings.flash_attention:
            smaller = replace(settings, type_k="q8_0", type_v="q8_0")
            changes.append(_Change("keep the cache in 8 bits", "--kv q8_0", weights, smaller))
        else:
            flash = replace(settings, flash_attention=True)
            changes.append(
                _Change("turn flash attention on", "without --no-flash-attn", weights, flash)
            )
    if found.engine is Engine.VLLM and settings.type_k != "fp8":
        smaller = replace(settings, type_k="fp8", type_v="fp8")
        changes.append(_Change("keep the cache in FP8", "--kv fp8", weights, smaller))
    if settings.parallel > 1:
        single = replace(settings, parallel=1)
        changes.append(_Change("serve one sequence at a time", "--parallel 1", weights, single))
    return changes


def _context_changes(found: Estimate) -> list[_Change]:
    if not found.max_context:
        return []
    shorter = replace(found.settings, context=found.max_context, yarn=None)
    text = f"shorten the context to {found.max_context:,}"
    return [_Change(text, f"--context {found.max_context}", found.weights, shorter)]


def _offload_changes(model: Model, found: Estimate, gpus: Sequence[Gpu]) -> list[_Change]:
    """The fewest experts, else layers, on the CPU; found by bisection."""
    if found.engine is not Engine.LLAMA_CPP:
        return []
    layers = model.config.num_hidden_layers
    weights, settings = found.weights, found.settings

    def experts_off(count: int) -> Settings:
        return replace(settings, cpu_experts=count)

    def layers_off(count: int) -> Settings:
        return replace(settings, gpu_layers=layers + 1 - count)

    def fewest(change: Callable[[int], Settings]) -> int | None:
        return _fewest(lambda n: _fits(model, found.engine, weights, change(n), gpus), layers)

    if model.config.is_moe and settings.gpu_layers is None:
        count = fewest(experts_off)
        if count is not None:
            text = f"keep the experts of {count} of {layers} layers on the CPU (slower)"
            return [_Change(text, f"--offload-experts {count}", weights, experts_off(count))]
    if settings.gpu_layers is None and not settings.cpu_experts:
        count = fewest(layers_off)
        if count is not None:
            text = f"keep {count} of {layers + 1} layers on the CPU (much slower)"
            return [_Change(text, f"--gpu-layers {layers + 1 - count}", weights, layers_off(count))]
    return []


def _fewest(fits: Callable[[int], bool], most: int) -> int | None:
    """The smallest number above 0 that fits, of ``most`` at most; None if not even that does."""
    if not fits(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def _format_changes(model: Model, found: Estimate) -> list[_Change]:
    """The largest smaller quantizations that the same engine runs."""
    if model.stored is not None:
        return []
    smaller = []
    for fmt in FORMATS:
        if default_engine(fmt) is not found.engine:
            continue
        try:
            weights = model.weights(fmt)
        except UsageError:
            continue
        if weights.total < found.weights.total:
            smaller.append(weights)
    smaller.sort(key=lambda weights: -weights.total)
    changes = []
    for weights in smaller:
        text = f"quantize to {weights.format} ({weights.bits_per_weight:.2f} bits per weight)"
        changes.append(_Change(text, f"--quant {weights.format}", weights, found.settings))
    return _largest_fitting(changes, found)


def _largest_fitting(smaller: list[_Change], found: Estimate) -> list[_Change]:
    """Those that save the missing bytes, a few of them."""
    missing = -min(d.left for d in found.devices if d.left is not None)
    enough = [c for c in smaller if found.weights.total - c.weights.total >= missing]
    return enough[:_SMALLER_FIRST_TRIED]


def _fits(
    model: Model, engine: Engine, weights: Weights, settings: Settings, gpus: Sequence[Gpu]
) -> bool:
    after = _try(model, engine, weights, settings, gpus)
    return after is not None and after.verdict is not Verdict.NO


def _try(
    model: Model, engine: Engine, weights: Weights, settings: Settings, gpus: Sequence[Gpu]
) -> Estimate | None:
    try:
        return estimate(
            model.title, model.config, weights, engine, settings, gpus, find_max_context=False
        )
    except UsageError:
        return None
