"""llama.cpp's buffers per device: weights, KV cache, compute and output, equal to its dry run.

A real load on several GPUs takes a little less than the dry run says: one input less of
``4 * hidden_size * ubatch`` bytes in each pipeline copy on every GPU but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, groupby

from qwen3q.memory.devices import DeviceMemory, context_bytes, context_spread
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.llama_alloc import compute_bytes
from qwen3q.memory.llama_graph import HADAMARD_V, Batch, Placement, WeightBytes, build_graph
from qwen3q.memory.settings import Settings, is_quantized, row_bytes
from qwen3q.memory.weights import Weights
from qwen3q.models.config import Qwen3Config

LOGICAL_BATCH = 2048
"""llama.cpp's ``-b``; a larger ``-ub`` needs it as large."""

_CELLS = 256
_ALIGNMENT = 32
_PERIOD_FROM, _PERIOD = 8, 2
"""After this many layers on a device the allocator repeats itself every second layer."""

_COPIES_WEIGHTS = frozenset(Family) - {Family.APPLE}
"""Families whose backends run large batches of CPU layers on the GPU, from copies."""

_CUDA_LIKE = frozenset(
    {
        Family.NVIDIA, Family.PASCAL, Family.NVIDIA_UNIFIED, Family.RADEON, Family.INSTINCT,
        Family.STRIX_HALO,
    }
)  # fmt: skip
"""Families whose flash attention reads a quantized cache through a copy in F16."""


def llama_memory(
    config: Qwen3Config, weights: Weights, settings: Settings, gpus: Sequence[Gpu | None]
) -> list[DeviceMemory]:
    """What each device holds; the CPU comes last.

    Args:
        gpus: in llama.cpp's order; None for one of unknown kind; empty to run on the CPU.
    """
    return _Run(config, weights, settings, tuple(gpus)).devices()


def processor_memory(
    config: Qwen3Config, weights: Weights, settings: Settings, processor: Gpu
) -> DeviceMemory:
    """What a run on a processor alone takes of its RAM, the program itself included."""
    [cpu] = llama_memory(config, weights, settings, ())
    return replace(
        cpu,
        gpu=processor,
        overhead=context_bytes(processor),
        uncertainty=cpu.uncertainty + context_spread(processor),
    )


def cache_tokens(settings: Settings) -> int:
    """Cells of the cache, all sequences together: each padded to 256."""
    return settings.parallel * _padded(settings.context)


def layer_cache_bytes(config: Qwen3Config, settings: Settings) -> tuple[int, int]:
    """Bytes of K and of V of one layer."""
    cells = cache_tokens(settings)
    return (
        cells * row_bytes(settings.type_k, config.kv_size),
        cells * row_bytes(settings.type_v, config.kv_size),
    )


def output_bytes(config: Qwen3Config, settings: Settings) -> int:
    """The host buffer of logits: one row per sequence."""
    return 4 * config.vocab_size * settings.parallel


def outside_bytes(
    config: Qwen3Config, settings: Settings, gpu: Gpu | None, moved: int = 0
) -> tuple[int, int]:
    """What is outside llama.cpp's buffers on one GPU, and by how much that may be off.

    The driver's context; on CUDA and ROCm flash attention's F16 copy of a quantized cache (in newer
    builds part of the compute buffer, which the dry run of another backend does not show); and
    copies of weights.

    Args:
        moved: bytes of the weights that this GPU copies from the CPU for large batches.
    """
    scratch = moved
    if gpu is not None and gpu.family in _CUDA_LIKE and settings.flash_attention:
        halves = is_quantized(settings.type_k) + is_quantized(settings.type_v)
        scratch += halves * cache_tokens(settings) * row_bytes("f16", config.kv_size)
    return context_bytes(gpu) + scratch, context_spread(gpu) + scratch // 4


@cache
def _places(
    n_layers: int, gpu_layers: int, ends: tuple[float, ...], cpu_experts: int
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Device of every layer, of every layer's experts, and of the output, which counts as the last
    layer (``get_layer_buft_list`` in llama-model.cpp)."""
    cpu = len(ends)
    first = n_layers + 1 - gpu_layers

    def device(layer: int) -> int:
        if layer < first:
            return cpu
        return next(i for i, end in enumerate(ends) if (layer - first) / gpu_layers < end)

    layers = tuple(map(device, range(n_layers)))
    return layers, (cpu,) * cpu_experts + layers[cpu_experts:], device(n_layers)


class _Run:
    def __init__(
        self,
        config: Qwen3Config,
        weights: Weights,
        settings: Settings,
        gpus: tuple[Gpu | None, ...],
    ) -> None:
        self.config = config
        self.weights = weights
        self.settings = settings
        self.gpus = gpus
        self.cpu = len(gpus)
        self.n_layers = config.num_hidden_layers
        wanted = self.n_layers + 1 if settings.gpu_layers is None else settings.gpu_layers
        self.gpu_layers = min(wanted, self.n_layers + 1) if gpus else 0
        shares = [gpu.usable_bytes if gpu else 1 for gpu in gpus]
        ends = tuple(end / sum(shares) for end in accumulate(shares))
        self.layer_device, self.expert_device, self.output_device = _places(
            self.n_layers, self.gpu_layers, ends, settings.cpu_experts
        )
        self.k_bytes, self.v_bytes = layer_cache_bytes(config, settings)

    def devices(self) -> list[DeviceMemory]:
        weights, kv = [0] * (self.cpu + 1), [0] * (self.cpu + 1)
        moe = self.config.is_moe
        for layer, size in enumerate(self.weights.layers):
            experts = size.ffn if moe else 0
            weights[self.layer_device[layer]] += size.total - experts
            weights[self.expert_device[layer]] += experts
            kv[self.layer_device[layer]] += self.k_bytes + self.v_bytes
        embedding, head = _aligned(self.weights.embedding), _aligned(self.weights.head)
        weights[self.cpu] += embedding
        weights[self.output_device] += self.weights.final_norm + head
        if head == 0 and self.output_device != self.cpu:
            weights[self.output_device] += embedding
        compute = self.compute(offload=False)
        moved = self.moved_bytes(compute)
        found = []
        for i, gpu in enumerate(self.gpus):
            overhead, spread = outside_bytes(
                self.config, self.settings, gpu, moved if i == 0 else 0
            )
            found.append(
                DeviceMemory(
                    f"{gpu.backend if gpu else 'GPU'}{i}",
                    gpu, weights[i], kv[i], compute[i], overhead, spread,
                )
            )  # fmt: skip
        host = output_bytes(self.config, self.settings)
        found.append(
            DeviceMemory(
                "CPU", None, weights[self.cpu], kv[self.cpu], compute[self.cpu] + host, 0,
                compute[self.cpu] // 100,
            )
        )  # fmt: skip
        return found

    def compute(self, *, offload: bool) -> list[int]:
        """Compute buffers by device, the CPU last."""
        pipeline = (
            self.cpu > 1 and self.gpu_layers > self.n_layers and not self.settings.cpu_experts
        )
        kept = _representative(self.layer_device, self.expert_device)
        placement = Placement(
            self.cpu,
            tuple(self.layer_device[i] for i in kept),
            tuple(self.expert_device[i] for i in kept),
            self.output_device,
        )
        moved = self.moved_weights() if offload else WeightBytes()
        return _compute(self.config, self.batch(), placement, moved, pipeline, offload)

    def batch(self) -> Batch:
        settings = self.settings
        total = settings.context * settings.parallel
        tokens = min(total, settings.ubatch)
        rotates = self.config.head_dim % HADAMARD_V == 0
        return Batch(
            tokens=-(-tokens // settings.parallel) * settings.parallel,
            outputs=min(tokens, max(LOGICAL_BATCH, settings.ubatch)),
            n_kv=_padded(settings.context),
            streams=settings.parallel,
            flash_attention=settings.flash_attention,
            rotate_k=rotates and is_quantized(settings.type_k),
            rotate_v=rotates and is_quantized(settings.type_v),
            cast_k=settings.flash_attention and settings.type_k == "f32",
            cast_v=settings.flash_attention and settings.type_v == "f32",
            k_bytes=self.k_bytes,
            v_bytes=self.v_bytes,
        )

    def moved_weights(self) -> WeightBytes:
        """The largest weight of each kind that is on the CPU: what a GPU copies to work on it."""
        on_cpu = [
            layer
            for layer, device in zip(self.weights.layers, self.expert_device, strict=True)
            if device == self.cpu
        ]

        def largest(part: str) -> int:
            return max((getattr(layer, part) for layer in on_cpu), default=0)

        return WeightBytes(
            q=largest("q"),
            k=largest("k"),
            v=largest("v"),
            o=largest("o"),
            gate=largest("gate"),
            up=largest("up"),
            down=largest("down"),
            output=self.weights.head or self.weights.embedding,
        )

    def moved_bytes(self, compute: list[int]) -> int:
        """What the first GPU's compute buffer grows by for copies of the CPU's weights."""
        first = self.gpus[0] if self.gpus else None
        uses_cpu = self.cpu in self.expert_device or self.output_device == self.cpu
        if first is None or first.family not in _COPIES_WEIGHTS or not uses_cpu:
            return 0
        return max(0, self.compute(offload=True)[0] - compute[0])


def _padded(context: int) -> int:
    return -(-context // _CELLS) * _CELLS


def _aligned(nbytes: int) -> int:
    """As a tensor lies in a buffer; only a vocabulary of odd length makes a difference."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


@cache
def _representative(layers: tuple[int, ...], experts: tuple[int, ...]) -> list[int]:
    """Layers that have the peak of all: of each run on one device the first few."""
    kept: list[int] = []
    start = 0
    for _, run in groupby(zip(layers, experts, strict=True)):
        length = len(list(run))
        few = length
        if length > _PERIOD_FROM:
            few = _PERIOD_FROM + (length - _PERIOD_FROM) % _PERIOD
        kept.extend(range(start, start + few))
        start += length
    return kept


@cache
def _compute(
    config: Qwen3Config,
    batch: Batch,
    placement: Placement,
    weights: WeightBytes,
    pipeline: bool,
    offload: bool,
) -> list[int]:
    graph = build_graph(config, batch, placement, weights)
    alignments = (_ALIGNMENT,) * (placement.cpu + 1)
    return compute_bytes(graph, placement.cpu, alignments, pipeline=pipeline, offload=offload)
