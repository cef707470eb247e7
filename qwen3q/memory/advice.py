"""What to change when a run does not fit: each change tried, with what it brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


def advise(model: Model, found: Estimate, gpus: Sequence[Gpu]) -> list[Advice]:
    """Changes that make ``found`` fit, least costly first; empty if none does."""
    if found.verdict is not Verdict.NO:
        return []
    tries: list[tuple[str, str, Weights, Settings]] = []
    tries += _cache_tries(found)
    tries += _context_tries(found)
    tries += _offload_tries(model, found, gpus)
    tries += _format_tries(model, found)
    advice = []
    for text, options, weights, settings in tries:
        after = _try(model, found.engine, weights, settings, gpus)
        if after is not None and after.verdict is not Verdict.NO:
            advice.append(Advice(text, options, after.total))
    return advice


def _cache_tries(found: Estimate) -> list[tuple[str, str, Weights, Settings]]:
    settings, weights = found.settings, found.weights
    tries = []
    if found.engine is Engine.LLAMA_CPP and not is_quantized(settings.type_k):
        if settings.flash_attention:
            smaller = replace(settings, type_k="q8_0", type_v="q8_0")
            tries.append(("keep the cache in 8 bits", "--kv q8_0", weights, smaller))
        else:
            flash = replace(settings, flash_attention=True)
            tries.append(("turn flash attention on", "without --no-flash-attn", weights, flash))
    if found.engine is Engine.VLLM and settings.type_k != "fp8":
        smaller = replace(settings, type_k="fp8", type_v="fp8")
        tries.append(("keep the cache in FP8", "--kv fp8", weights, smaller))
    if settings.parallel > 1:
        single = replace(settings, parallel=1)
        tries.append(("serve one sequence at a time", "--parallel 1", weights, single))
    return tries


def _context_tries(found: Estimate) -> list[tuple[str, str, Weights, Settings]]:
    if not found.max_context:
        return []
    shorter = replace(found.settings, context=found.max_context, yarn=None)
    text = f"shorten the context to {found.max_context:,}"
    return [(text, f"--context {found.max_context}", found.weights, shorter)]


def _offload_tries(
    model: Model, found: Estimate, gpus: Sequence[Gpu]
) -> list[tuple[str, str, Weights, Settings]]:
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
            return [(text, f"--offload-experts {count}", weights, experts_off(count))]
    if settings.gpu_layers is None and not settings.cpu_experts:
        count = fewest(layers_off)
        if count is not None:
            text = f"keep {count} of {layers + 1} layers on the CPU (much slower)"
            return [(text, f"--gpu-layers {layers + 1 - count}", weights, layers_off(count))]
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


def _format_tries(model: Model, found: Estimate) -> list[tuple[str, str, Weights, Settings]]:
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
    fitting = []
    for weights in smaller:
        text = f"quantize to {weights.format} ({weights.bits_per_weight:.2f} bits per weight)"
        fitting.append((text, f"--quant {weights.format}", weights, found.settings))
    return _first_fitting(fitting, found)


def _first_fitting(
    tries: list[tuple[str, str, Weights, Settings]], found: Estimate
) -> list[tuple[str, str, Weights, Settings]]:
    """Those that the missing bytes allow, a few of them."""
    missing = -min(d.left for d in found.devices if d.left is not None)
    enough = [t for t in tries if found.weights.total - t[2].total >= missing]
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
