"""The estimator against llama.cpp's dry-run allocator, cell by cell."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from qwen3q.llama.oracle import dry_run, load_of, pseudo_gpus, write_header
from qwen3q.memory.llamacpp import llama_memory, output_bytes
from qwen3q.memory.settings import Settings
from qwen3q.memory.weights import Weights, release_weights
from qwen3q.models.catalog import Release, find_release
from qwen3q.models.config import Qwen3Config
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import file_type

MODELS = (
    "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-14b", "qwen3-32b",
    "qwen3-30b-a3b", "qwen3-235b-a22b", "qwen3-coder-480b-a35b",
)  # fmt: skip
CONTEXTS = (1000, 4096, 32768, 131072)
UBATCHES = (64, 512, 2048)
CACHES = (("f16", "f16"), ("q8_0", "q8_0"), ("f16", "q4_0"))

Buffers = dict[str, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One load: settings, number of GPUs, and both figures by device (weights, KV, compute)."""

    model: str
    gpus: int
    settings: Settings
    ours: Buffers
    theirs: Buffers

    @property
    def weights_and_kv_exact(self) -> bool:
        return all(self.ours[d][:2] == self.theirs[d][:2] for d in self.theirs)

    @property
    def compute_error(self) -> float:
        """The largest of any device."""
        return max(
            abs(self.ours[d][2] / self.theirs[d][2] - 1) for d in self.theirs if self.theirs[d][2]
        )

    @property
    def total_error(self) -> float:
        return max(abs(sum(self.ours[d]) / sum(self.theirs[d]) - 1) for d in self.theirs)


def run_grid(
    models: Iterable[str] = MODELS,
    quant: str = "Q4_K_M",
    gpus: Sequence[int] = (0, 1, 2),
    contexts: Sequence[int] = CONTEXTS,
    ubatches: Sequence[int] = UBATCHES,
) -> Iterator[Cell]:
    """Measures and predicts every cell that llama.cpp accepts."""
    with tempfile.TemporaryDirectory() as folder, pseudo_gpus(max(gpus)) as endpoints:
        for name in models:
            release = find_release(name)
            assert release is not None
            path = Path(folder) / f"{name}.gguf"
            plan = plan_gguf(release.title, release.config, file_type(quant))
            write_header(path, release.config, plan)
            for count, settings in _cells(release.config, gpus, contexts, ubatches):
                yield measure(release, path, quant, count, settings, endpoints)
            path.unlink()


def measure(
    release: Release,
    path: Path,
    quant: str,
    gpus: int,
    settings: Settings,
    endpoints: Sequence[str],
) -> Cell:
    """One cell."""
    config = release.config
    theirs = dry_run(path, load_of(settings, (1.0,) * gpus), endpoints)
    weights = release_weights(release, f"gguf:{quant}")
    return Cell(
        model=release.title,
        gpus=gpus,
        settings=settings,
        ours=predicted(config, weights, settings, gpus),
        theirs={d: (b.model, b.context, b.compute) for d, b in theirs.items()},
    )


def predicted(config: Qwen3Config, weights: Weights, settings: Settings, gpus: int) -> Buffers:
    """Predicted buffers by device; the dry run leaves the host's output buffer out."""
    found = {}
    for device in llama_memory(config, weights, settings, (None,) * gpus):
        output = output_bytes(config, settings) if device.name == "CPU" else 0
        found[device.name] = (device.weights, device.kv, device.compute - output)
    return found


def _cells(
    config: Qwen3Config, gpus: Sequence[int], contexts: Sequence[int], ubatches: Sequence[int]
) -> Iterator[tuple[int, Settings]]:
    for count, context, ubatch, kinds, flash, parallel, experts, layers in product(
        gpus, contexts, ubatches, CACHES, (True, False), (1, 4), (0, config.num_hidden_layers),
        (None, 10),
    ):  # fmt: skip
        if not flash and kinds[1] != "f16":
            continue  # llama.cpp refuses a quantized V without flash attention
        if experts and not (config.is_moe and count):
            continue
        if layers is not None and not count:
            continue
        if context > 40960 and (parallel > 1 or ubatch == 64):
            continue
        yield count, Settings(context, parallel, kinds[0], kinds[1], ubatch, flash, layers, experts)
