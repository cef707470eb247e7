"""vLLM's memory: weights under tensor parallelism, the KV pool, and what is left for it.

Weights are measured as vLLM's log does ("Model loading took"): with RoPE's table and with what
PyTorch's caching allocator rounds up. The overhead beside weights and cache is fitted to five
published runs on discrete cards (0.7 to 2.0 GiB): a constant and the activations of the largest
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3q.memory.cuda_cache import CODE_BYTES, rounding_waste
from qwen3q.memory.devices import DeviceMemory
from qwen3q.memory.gpus import MIB, Gpu
from qwen3q.memory.settings import Settings, needed_yarn, row_bytes
from qwen3q.memory.weights import Weights
from qwen3q.models.config import Qwen3Config

BLOCK_TOKENS = 16
BATCHED_TOKENS = 8192
"""``max_num_batched_tokens`` of the profiling run."""

_FIXED_OVERHEAD = 470 * MIB
_BYTES_PER_ACTIVATION = 12
_SPREAD = 0.45


@dataclass(frozen=True, slots=True)
class KvPool:
    """What is left for the cache on these GPUs.

    Attributes:
        nbytes: per GPU.
        tokens: that the pool holds, in whole blocks.
        concurrency: sequences of the wanted context at once.
    """

    nbytes: int
    tokens: int
    concurrency: float


def vllm_memory(
    config: Qwen3Config, weights: Weights, settings: Settings, gpus: Sequence[Gpu | None]
) -> list[DeviceMemory]:
    """What each GPU must hold for ``parallel`` sequences of ``context`` tokens.

    Args:
        gpus: split by tensor parallelism; one None for a GPU of unknown kind.
    """
    size = len(gpus)
    overhead = overhead_bytes(config)
    return [
        DeviceMemory(
            name=f"{gpu.backend if gpu else 'GPU'}{i}",
            gpu=gpu,
            weights=load_bytes(config, weights, settings, size),
            kv=blocks_of(settings) * BLOCK_TOKENS * token_bytes(config, settings, size),
            compute=overhead - _FIXED_OVERHEAD,
            overhead=_FIXED_OVERHEAD,
            uncertainty=round(overhead * _SPREAD),
        )
        for i, gpu in enumerate(gpus)
    ]


def load_bytes(config: Qwen3Config, weights: Weights, settings: Settings, size: int) -> int:
    """Bytes of weights per GPU as vLLM reports them after loading.

    Linears, embedding and head are split; norms and the router are on every GPU. GPTQ's ``g_idx``
    is dropped where activations are not reordered.
    """
    whole = weights.final_norm + sum(layer.small for layer in weights.layers)
    index = sum(layer.index for layer in weights.layers)
    split = weights.total - whole - index
    waste = _waste(config, weights.format, size)
    positions = config.max_position_embeddings
    if needed_yarn(config, settings.context) or settings.yarn:
        positions = settings.context
    rope = positions * config.head_dim * 2
    return split // size + whole + waste + rope


def token_bytes(config: Qwen3Config, settings: Settings, size: int) -> int:
    """Bytes of cache per token and GPU; heads that run out are copied."""
    heads = max(1, config.num_key_value_heads // size)
    return 2 * config.num_hidden_layers * row_bytes(settings.type_k, heads * config.head_dim)


def blocks_of(settings: Settings) -> int:
    """Cache blocks of the wanted sequences."""
    return settings.parallel * -(-settings.context // BLOCK_TOKENS)


def overhead_bytes(config: Qwen3Config) -> int:
    """What vLLM needs beside weights and cache: context, CUDA graphs and peak activations."""
    width = config.intermediate_size
    if config.is_moe:
        width = config.num_experts_per_tok * config.moe_intermediate_size
    return _FIXED_OVERHEAD + BATCHED_TOKENS * width * _BYTES_PER_ACTIVATION


def kv_pool(
    config: Qwen3Config, weights: Weights, settings: Settings, gpus: Sequence[Gpu]
) -> KvPool:
    """The cache that vLLM builds on these GPUs; a pool of 0 means that it will not start."""
    size = len(gpus)
    total = min(gpu.usable_bytes for gpu in gpus)
    free = (
        int(settings.utilization * total)
        - load_bytes(config, weights, settings, size)
        - overhead_bytes(config)
    )
    return pool_of(config, settings, size, max(0, free))


def pool_of(config: Qwen3Config, settings: Settings, size: int, nbytes: int) -> KvPool:
    """The tokens in ``nbytes`` of cache per GPU."""
    tokens = nbytes // (token_bytes(config, settings, size) * BLOCK_TOKENS) * BLOCK_TOKENS
    return KvPool(nbytes, tokens, tokens / settings.context)


def _waste(config: Qwen3Config, fmt: str, size: int) -> int:
    """Rounding of the dense linears, which vLLM fuses: q with k and v, gate with up."""
    if config.is_moe or fmt not in CODE_BYTES:
        return 0
    inputs = (config.q_size + 2 * config.kv_size, config.q_size, 2 * config.intermediate_size,
              config.intermediate_size)  # fmt: skip
    each = (int(width * config.hidden_size * CODE_BYTES[fmt]) // size for width in inputs)
    return config.num_hidden_layers * sum(map(rounding_waste, each))
