"""transformers' memory on one GPU: weights, cache, workspace, and the peak of the prefill.

Held against Qwen's published table (one H20, transformers 4.51, input and 2,048 new tokens); the
table counts weights, cache and workspace, not the driver's context nor the peak of the prefill.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3q.memory.cuda_cache import CODE_BYTES, rounding_waste
from qwen3q.memory.devices import DeviceMemory, context_bytes, context_spread
from qwen3q.memory.gpus import MIB, Gpu
from qwen3q.memory.settings import Settings, row_bytes
from qwen3q.memory.weights import Weights
from qwen3q.models.config import Qwen3Config

WORKSPACE = 27 * MIB
"""cuBLAS workspaces and what generation holds between tokens."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What stays allocated while tokens are generated, in bytes."""

    weights: int
    kv: int
    workspace: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.workspace


def steady_memory(config: Qwen3Config, weights: Weights, settings: Settings) -> Steady:
    """What the published table counts."""
    tokens = settings.context * settings.parallel
    kv = 2 * config.num_hidden_layers * tokens * row_bytes(settings.type_k, config.kv_size)
    workspace = WORKSPACE
    if weights.format.startswith("awq"):
        workspace += 4 * config.q_size * tokens
    return Steady(load_bytes(config, weights), kv, workspace)


def load_bytes(config: Qwen3Config, weights: Weights) -> int:
    """Weights as loaded: FP8 of a tied model gets a head of its own, and quantized tensors are
    rounded up by the allocator, of which loading avoids half by warming it up."""
    total = weights.total
    if weights.format == "fp8" and config.tie_word_embeddings:
        total += weights.embedding
    return total + _waste(config, weights.format) // 2


def transformers_memory(
    config: Qwen3Config, weights: Weights, settings: Settings, gpu: Gpu | None
) -> DeviceMemory:
    """What one GPU holds at the peak: the steady state and the activations of the prefill."""
    steady = steady_memory(config, weights, settings)
    peak = _prefill_peak(config, settings)
    return DeviceMemory(
        name=f"{gpu.backend if gpu else 'GPU'}0",
        gpu=gpu,
        weights=steady.weights,
        kv=steady.kv,
        compute=steady.workspace + peak,
        overhead=context_bytes(gpu),
        uncertainty=steady.total // 100 + peak // 2 + context_spread(gpu),
    )


def _prefill_peak(config: Qwen3Config, settings: Settings) -> int:
    """Activations of one layer over the whole prompt: gate, up and their product in 16 bits, the
    stream and its norm in 32."""
    tokens = settings.context * settings.parallel
    inner = config.moe_intermediate_size if config.is_moe else config.intermediate_size
    return tokens * (3 * 2 * inner + 2 * 4 * config.hidden_size)


def _waste(config: Qwen3Config, fmt: str) -> int:
    """Rounding of all code tensors, one per linear and expert; of float weights there is none."""
    if fmt in ("bf16", "fp16") or fmt not in CODE_BYTES:
        return 0
    hidden, each = config.hidden_size, CODE_BYTES[fmt]

    def waste(numel: int) -> int:
        return rounding_waste(int(numel * each))

    layer = 2 * waste(hidden * config.q_size) + 2 * waste(hidden * config.kv_size)
    if config.is_moe:
        layer += 3 * config.num_experts * waste(hidden * config.moe_intermediate_size)
    else:
        layer += 3 * waste(hidden * config.intermediate_size)
    return config.num_hidden_layers * layer
