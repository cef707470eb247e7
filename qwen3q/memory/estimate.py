"""One run of one model in one quantization: memory per device, what fits, and how fast."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from qwen3q.errors import UsageError
from qwen3q.memory import llamacpp
from qwen3q.memory.devices import DeviceMemory
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.hf import transformers_memory
from qwen3q.memory.processor import on_processor
from qwen3q.memory.settings import (
    Engine,
    Settings,
    check_settings,
    longest_context,
    native_context,
    needed_yarn,
)
from qwen3q.memory.speed import Speed, predict_speed
from qwen3q.memory.vllm import KvPool, kv_pool, vllm_memory
from qwen3q.memory.weights import Weights
from qwen3q.models.config import Qwen3Config

_STEP = 256


class Verdict(StrEnum):
    """Whether it fits; ``tight`` where it does, but by less than the uncertainty."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "does not fit"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one run takes.

    Attributes:
        devices: GPUs in order, then the CPU where the engine uses it; of a run on a processor
            alone just that.
        verdict: None where no device's size is known.
        max_context: the longest context of one sequence that fits, 0 for none, None if unknown.
        pool: vLLM's cache on these GPUs.
        notes: what the reader should know about this run.
    """

    model: str
    weights: Weights
    engine: Engine
    settings: Settings
    devices: tuple[DeviceMemory, ...]
    verdict: Verdict | None
    max_context: int | None
    speed: Speed | None
    pool: KvPool | None
    notes: tuple[str, ...]

    @property
    def on_gpus(self) -> tuple[DeviceMemory, ...]:
        """The devices that the totals count: the GPUs, or the CPU if there are none."""
        if len(self.devices) == 1:
            return self.devices
        return tuple(d for d in self.devices if d.name != "CPU")

    @property
    def total(self) -> int:
        return sum(d.total for d in self.on_gpus)

    @property
    def uncertainty(self) -> int:
        return sum(d.uncertainty for d in self.on_gpus)


def default_engine(fmt: str) -> Engine:
    """Who runs a format, if not said otherwise."""
    if fmt.startswith("gguf"):
        return Engine.LLAMA_CPP
    return Engine.TRANSFORMERS if fmt.startswith("bnb") else Engine.VLLM


def only_engine(gpus: Sequence[Gpu]) -> Engine | None:
    """The one engine that is estimated on these parts; None where each format has its own."""
    return Engine.LLAMA_CPP if on_processor(gpus) else None


def check_engine(config: Qwen3Config, fmt: str, engine: Engine) -> None:
    """Refuses a format that the engine does not read.

    Raises:
        UsageError: names a format or an engine that goes together.
    """
    gguf = fmt.startswith("gguf")
    if engine is Engine.LLAMA_CPP and not gguf:
        raise UsageError(f"llama.cpp does not read {fmt}.", "Take --quant gguf:Q4_K_M, or vllm.")
    if engine is not Engine.LLAMA_CPP and gguf:
        raise UsageError(
            f"{engine} does not run {fmt} as it is.",
            "Take --engine llama.cpp, or --quant awq:int4.",
        )
    if engine is Engine.VLLM and fmt == "bnb:int8":
        raise UsageError("vLLM does not run bnb:int8.", "Nearest: int8 or gptq:int8.")
    if engine is Engine.TRANSFORMERS and config.is_moe and fmt.startswith(("gptq", "awq")):
        raise UsageError(
            f"transformers leaves the experts of a {fmt} MoE uninitialised.",
            "Take --engine vllm, or --quant int4.",
        )


def reads(config: Qwen3Config, fmt: str, engine: Engine) -> bool:
    """Whether ``check_engine`` lets the format pass."""
    try:
        check_engine(config, fmt, engine)
    except UsageError:
        return False
    return True


def estimate(
    model: str,
    config: Qwen3Config,
    weights: Weights,
    engine: Engine,
    settings: Settings,
    gpus: Sequence[Gpu] = (),
    *,
    find_max_context: bool = True,
) -> Estimate:
    """Estimates one run.

    Args:
        gpus: what it runs on, or a processor alone; empty for one GPU of unknown size.
        find_max_context: look for the longest context that fits.

    Raises:
        UsageError: the engine would refuse this run.
    """
    check_engine(config, weights.format, engine)
    if engine is Engine.TRANSFORMERS and len(gpus) > 1:
        raise UsageError(
            "transformers is estimated on one GPU.", "For several take --engine vllm or llama.cpp."
        )
    if on_processor(gpus):
        _check_processor(engine, settings)
    check_settings(config, weights.format, settings, engine, len(gpus))
    devices = _devices(config, weights, engine, settings, gpus)
    max_context = None
    if gpus and find_max_context:
        max_context = _max_context(config, weights, engine, settings, gpus)
    return Estimate(
        model=model,
        weights=weights,
        engine=engine,
        settings=settings,
        devices=tuple(devices),
        verdict=_verdict(devices, engine, settings) if gpus else None,
        max_context=max_context,
        speed=predict_speed(config, weights, settings, engine, devices),
        pool=kv_pool(config, weights, settings, gpus) if gpus and engine is Engine.VLLM else None,
        notes=tuple(_notes(config, settings, devices, bool(gpus))),
    )


def verdict_on(device: DeviceMemory, engine: Engine, settings: Settings) -> Verdict:
    """Whether one device's share fits it."""
    assert device.gpu is not None
    return _judge(device.total, device.uncertainty, device.gpu, engine, settings)


def on_single_gpus(
    found: Estimate, config: Qwen3Config, gpus: Iterable[Gpu]
) -> Iterator[tuple[Gpu, Verdict, int]]:
    """For each GPU by itself: the verdict and the bytes left (negative: missing).

    Args:
        found: an estimate for one GPU of unknown size.
    """
    inside = found.devices[0].total - found.devices[0].overhead
    outside: dict[Family, tuple[int, int]] = {}
    for gpu in gpus:
        if gpu.family not in outside:
            outside[gpu.family] = _outside(found, config, gpu)
        overhead, uncertainty = outside[gpu.family]
        total = inside + overhead
        verdict = _judge(total, uncertainty, gpu, found.engine, found.settings)
        yield gpu, verdict, gpu.usable_bytes - total


def _judge(total: int, uncertainty: int, gpu: Gpu, engine: Engine, settings: Settings) -> Verdict:
    limit = gpu.usable_bytes
    if engine is Engine.VLLM:
        limit = int(limit * settings.utilization)
    if total > limit:
        return Verdict.NO
    return Verdict.TIGHT if total + uncertainty > limit else Verdict.FITS


def _outside(found: Estimate, config: Qwen3Config, gpu: Gpu) -> tuple[int, int]:
    """Overhead and uncertainty of a run on one GPU of a family."""
    settings = found.settings
    whole = settings.gpu_layers is None and not settings.cpu_experts
    if found.engine is Engine.LLAMA_CPP and whole:
        return llamacpp.outside_bytes(config, settings, gpu)
    device = _devices(config, found.weights, found.engine, settings, [gpu])[0]
    return device.overhead, device.uncertainty


def _devices(
    config: Qwen3Config,
    weights: Weights,
    engine: Engine,
    settings: Settings,
    gpus: Sequence[Gpu],
) -> list[DeviceMemory]:
    if on_processor(gpus):
        return [llamacpp.processor_memory(config, weights, settings, gpus[0])]
    if engine is Engine.LLAMA_CPP:
        return llamacpp.llama_memory(config, weights, settings, gpus or [None])
    if engine is Engine.VLLM:
        return vllm_memory(config, weights, settings, gpus or [None])
    return [transformers_memory(config, weights, settings, gpus[0] if gpus else None)]


def _verdict(devices: Sequence[DeviceMemory], engine: Engine, settings: Settings) -> Verdict:
    verdicts = [verdict_on(d, engine, settings) for d in devices if d.gpu is not None]
    for verdict in (Verdict.NO, Verdict.TIGHT):
        if verdict in verdicts:
            return verdict
    return Verdict.FITS


def _check_processor(engine: Engine, settings: Settings) -> None:
    """Refuses what a processor alone is not estimated for."""
    if engine is not Engine.LLAMA_CPP:
        raise UsageError(
            f"{engine} is estimated on GPUs, not on a processor alone.",
            "Take a format that llama.cpp runs: --quant gguf:Q4_K_M.",
        )
    if settings.gpu_layers:
        raise UsageError(
            f"--gpu-layers {settings.gpu_layers} needs a GPU, and there is none.",
            "Leave it out, or name the GPU.",
        )


def _max_context(
    config: Qwen3Config,
    weights: Weights,
    engine: Engine,
    settings: Settings,
    gpus: Sequence[Gpu],
) -> int:
    """The longest context, in steps of 256, that fits; 0 if not even the shortest does.

    Memory grows almost linearly with the context, so the search interpolates and closes in.
    """

    def room(context: int) -> int:
        shape = replace(settings, context=context, yarn=None)
        devices = _devices(config, weights, engine, shape, gpus)
        share = settings.utilization if engine is Engine.VLLM else 1.0
        return min(int(d.gpu.usable_bytes * share) - d.total for d in devices if d.gpu is not None)

    low, high = 1, longest_context(config) // _STEP
    room_high = room(high * _STEP)
    if room_high >= 0:
        return high * _STEP
    room_low = room(low * _STEP)
    if room_low < 0:
        return 0
    while high - low > 1:
        guess = low + (high - low) * room_low // (room_low - room_high)
        middle = min(max(guess, low + 1), high - 1)
        left = room(middle * _STEP)
        if left >= 0:
            low, room_low = middle, left
            if low + 1 < high and room((low + 1) * _STEP) < 0:
                break
        else:
            high, room_high = middle, left
    return low * _STEP


def _notes(
    config: Qwen3Config, settings: Settings, devices: Sequence[DeviceMemory], known: bool
) -> list[str]:
    notes = []
    factor = needed_yarn(config, settings.context)
    if factor is not None and settings.yarn is None and config.yarn is None:
        notes.append(
            f"{settings.context:,} tokens are beyond the model's own {native_context(config):,}: "
            f"turn YaRN on (--yarn {factor:g})."
        )
    cpu = devices[-1]
    if known and cpu.gpu is None and (settings.cpu_experts or settings.gpu_layers is not None):
        notes.append(
            f"The CPU holds {cpu.total / (1 << 30):.1f} GiB; its part of the speed assumes "
            f"{settings.host_bandwidth / 1e9:.0f} GB/s of memory bandwidth."
        )
    return notes
