"""How fast: decode from memory bandwidth plus a cost per layer, prefill from compute.

Decode: ``t = bytes_read / (a * bandwidth) + c * layers`` per token; a MoE reads its routed experts
only, and every token reads the cache up to its depth. Prefill of a batch adds compute, one read of
all weights and a cost per layer. Constants are fitted to published runs; ``band`` is the mean error
on those, or a guess (see ``eval/reports/memory.md``) where there are fewer than three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3q.memory.devices import DeviceMemory
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.settings import Engine, Settings, row_bytes
from qwen3q.memory.weights import LayerWeights, Weights
from qwen3q.models.config import Qwen3Config

SHORT_DEPTH = 256
"""Tokens in the cache where "decode speed" is not said to be at a depth."""

_PROMPT = 512
_PREFILL_LAYER_SECONDS = 250e-6
_PREFILL_LAYER_BANDWIDTH = 900e9
_ALL_REDUCE_SECONDS = 25e-6


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Constants of a family.

    Attributes:
        bandwidth_share, layer_seconds: a and c of the decode rule; ``moe_`` the same for MoE.
        compute_share: of the data sheet's FP16 rate that prefill reaches.
        band: relative error of decode.
        rows: published rows that the constants were held against.
    """

    bandwidth_share: float
    layer_seconds: float
    moe_bandwidth_share: float
    moe_layer_seconds: float
    compute_share: float
    moe_compute_share: float
    band: float
    rows: int


_ENGINE_BAND = {Engine.LLAMA_CPP: 0.0, Engine.VLLM: 0.20, Engine.TRANSFORMERS: 0.50}
_CPU_BAND = 0.40
"""Error bands beside the family's: of other engines, and of hosts, whose memory is not known."""

BEHAVIOUR = {
    Family.NVIDIA: Behaviour(0.90, 57e-6, 0.90, 57e-6, 1.15, 0.12, 0.08, 14),
    Family.PASCAL: Behaviour(0.42, 57e-6, 0.42, 57e-6, 0.8, 0.1, 0.30, 1),
    Family.NVIDIA_UNIFIED: Behaviour(0.85, 57e-6, 0.80, 60e-6, 0.5, 0.1, 0.25, 0),
    Family.RADEON: Behaviour(0.88, 66e-6, 0.66, 63e-6, 0.37, 0.08, 0.07, 7),
    Family.INSTINCT: Behaviour(0.60, 70e-6, 0.50, 70e-6, 0.35, 0.08, 0.30, 0),
    Family.STRIX_HALO: Behaviour(0.86, 90e-6, 0.54, 51e-6, 0.33, 0.07, 0.15, 12),
    Family.ARC: Behaviour(0.60, 100e-6, 0.45, 100e-6, 0.30, 0.07, 0.35, 0),
    Family.APPLE: Behaviour(0.72, 80e-6, 0.45, 100e-6, 0.65, 0.40, 0.20, 5),
    Family.CPU: Behaviour(1.0, 0.0, 1.0, 0.0, 0.0, 0.0, _CPU_BAND, 4),
}

_VLLM_SHARE = {"float": 0.90, "quantized": 0.72}
_VLLM_LAYER_SECONDS = 25e-6
_TRANSFORMERS_LAYER_SECONDS = {False: 600e-6, True: 10e-3}


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of one sequence.

    Attributes:
        decode: with a short cache.
        decode_full: at the end of the context.
        prefill: of a prompt of 512 tokens; None where the GPU's compute is unknown or the CPU
            takes part.
        band: relative error of decode on published rows.
    """

    decode: float
    decode_full: float
    prefill: float | None
    band: float


def predict_speed(
    config: Qwen3Config,
    weights: Weights,
    settings: Settings,
    engine: Engine,
    devices: Sequence[DeviceMemory],
) -> Speed | None:
    """The speed of a run whose memory is ``devices``; None where a GPU's bandwidth is unknown."""
    parts = [d.gpu for d in devices if d.gpu is not None]
    if not parts or not all(map(is_predictable, parts)):
        return None
    depth = min(SHORT_DEPTH, settings.context // 2)
    times = [
        decode_seconds(config, weights, settings, engine, devices, at)
        for at in (depth, settings.context)
    ]
    uses_cpu = engine is Engine.LLAMA_CPP and _cpu_read(config, weights, devices) > 0
    band = max(BEHAVIOUR[gpu.family].band for gpu in parts)
    return Speed(
        decode=1 / times[0],
        decode_full=1 / times[1],
        prefill=None if uses_cpu else _prefill(config, weights, engine, parts),
        band=max(band, _CPU_BAND if uses_cpu else _ENGINE_BAND[engine]),
    )


def is_predictable(gpu: Gpu) -> bool:
    """Whether its bandwidth is known: of a mere amount of memory it is not."""
    return gpu.family in BEHAVIOUR and gpu.bandwidth > 0


def read_bytes(config: Qwen3Config, weights: Weights) -> int:
    """Weights that one token reads: all but the embedding table, and only the routed experts."""
    layers = sum(_layer_read(config, layer) for layer in weights.layers)
    return layers + (weights.head or weights.embedding)


def cache_read_bytes(config: Qwen3Config, settings: Settings, depth: int) -> int:
    """Cache that one token reads at ``depth``."""
    each = row_bytes(settings.type_k, config.kv_size) + row_bytes(settings.type_v, config.kv_size)
    return depth * config.num_hidden_layers * each


def decode_seconds(
    config: Qwen3Config,
    weights: Weights,
    settings: Settings,
    engine: Engine,
    devices: Sequence[DeviceMemory],
    depth: int,
) -> float:
    """Seconds per token at ``depth``."""
    gpus = [(d, d.gpu) for d in devices if d.gpu is not None]
    moe = config.is_moe
    if engine is Engine.LLAMA_CPP:
        return _layer_split_seconds(config, weights, settings, devices, depth)
    size = len(gpus)
    nbytes = read_bytes(config, weights) + cache_read_bytes(config, settings, depth)
    slowest = min(gpus, key=lambda pair: pair[1].bandwidth)[1]
    family = BEHAVIOUR[slowest.family]
    if engine is Engine.VLLM:
        quantized = weights.format not in ("bf16", "fp16")
        share = _VLLM_SHARE["quantized" if quantized else "float"]
        share *= family.bandwidth_share / BEHAVIOUR[Family.NVIDIA].bandwidth_share
        layer = _VLLM_LAYER_SECONDS + (_ALL_REDUCE_SECONDS if size > 1 else 0.0)
    else:
        share, layer = family.bandwidth_share, _TRANSFORMERS_LAYER_SECONDS[moe]
    return nbytes / size / (share * slowest.bandwidth) + layer * config.num_hidden_layers


def _layer_split_seconds(
    config: Qwen3Config,
    weights: Weights,
    settings: Settings,
    devices: Sequence[DeviceMemory],
    depth: int,
) -> float:
    """Devices work one after the other, each on its share of the bytes."""
    active = read_bytes(config, weights)
    cache = cache_read_bytes(config, settings, depth)
    all_cache = sum(d.kv for d in devices)
    on_cpu = _cpu_read(config, weights, devices)
    seconds = on_cpu / settings.host_bandwidth
    on_gpus = sum(d.weights for d in devices if d.gpu is not None)
    layers = config.num_hidden_layers
    for device in devices:
        kv = cache * device.kv / all_cache
        if device.gpu is None:
            seconds += kv / settings.host_bandwidth
            continue
        constants = BEHAVIOUR[device.gpu.family]
        share = constants.moe_bandwidth_share if config.is_moe else constants.bandwidth_share
        nbytes = (active - on_cpu) * device.weights / max(1, on_gpus) + kv
        seconds += nbytes / (share * device.gpu.bandwidth)
        each = constants.moe_layer_seconds if config.is_moe else constants.layer_seconds
        seconds += each * layers * device.kv / all_cache
    return seconds


def _cpu_read(config: Qwen3Config, weights: Weights, devices: Sequence[DeviceMemory]) -> float:
    """Bytes of the CPU's weights that one token reads; experts go first to the CPU."""
    held = sum(d.weights for d in devices if d.gpu is None) - weights.embedding
    if held <= 0:
        return 0.0
    cache = sum(d.kv for d in devices)
    layers_there = sum(d.kv for d in devices if d.gpu is None) / cache
    dense = sum(layer.total - (layer.ffn if config.is_moe else 0) for layer in weights.layers)
    rest = held - layers_there * dense
    routed = config.num_experts_per_tok / config.num_experts if config.is_moe else 1.0
    return layers_there * dense + max(0.0, rest) * routed


def _layer_read(config: Qwen3Config, layer: LayerWeights) -> int:
    if not config.is_moe:
        return layer.total
    return layer.total - layer.ffn + layer.ffn * config.num_experts_per_tok // config.num_experts


def _prefill(
    config: Qwen3Config, weights: Weights, engine: Engine, gpus: Sequence[Gpu]
) -> float | None:
    if any(not gpu.tflops for gpu in gpus):
        return None
    gpu = min(gpus, key=lambda part: part.tflops)
    constants = BEHAVIOUR[gpu.family]
    share = constants.moe_compute_share if config.is_moe else constants.compute_share
    if engine is not Engine.LLAMA_CPP:
        share = min(share, 0.6)
    parallel = len(gpus) if engine is Engine.VLLM else 1
    inner = config.intermediate_size
    if config.is_moe:
        inner = config.num_experts_per_tok * config.moe_intermediate_size
    each = config.hidden_size * (2 * config.q_size + 2 * config.kv_size + 3 * inner)
    operations = 2 * _PROMPT * each * config.num_hidden_layers
    seconds = operations / (share * gpu.tflops * 1e12 * parallel)
    seconds += sum(layer.total for layer in weights.layers) / gpu.bandwidth / parallel
    slow = _PREFILL_LAYER_BANDWIDTH / gpu.bandwidth
    seconds += config.num_hidden_layers * _PREFILL_LAYER_SECONDS * slow
    return _PROMPT / seconds
