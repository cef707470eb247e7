"""What the estimator says of a run that was measured, to stand beside the measured figures.

Memory is ``qwen3q.memory``'s, equal to llama.cpp's own accounting. Speed is its rule for GPUs that
the catalog knows. For a CPU it has no rule; instead the memory's speed in the same run gives a
bound: each step of decoding reads the weights and the cache once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3q.evaluate.speed_tests import Phase, Planned
from qwen3q.memory.bandwidth import last_level_cache
from qwen3q.memory.gpus import Gpu, match_gpu
from qwen3q.memory.llamacpp import llama_memory, output_bytes
from qwen3q.memory.processor import DECODE_SHARE
from qwen3q.memory.settings import Engine, Settings
from qwen3q.memory.speed import cache_read_bytes, decode_seconds, predict_speed, read_bytes
from qwen3q.memory.weights import Weights
from qwen3q.models.config import Qwen3Config

if TYPE_CHECKING:
    from qwen3q.memory.devices import DeviceMemory

_PREFILL_BAND = 0.40
"""Error band that ``qwen3q estimate`` states for prefill."""

_ESTIMATED_PROMPT = 512
"""The estimator's prefill is that of a prompt of so many tokens, or of more in such pieces."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """The estimator for one model on the devices of this run.

    Attributes:
        gpu_layers: layers on GPUs; None for all.
        gpus: what llama.cpp uses, in its order, None for one that the catalog lacks; empty for
            a run on the CPU.
        read_bandwidth: bytes per second that this machine's memory was just read with.
    """

    config: Qwen3Config
    weights: Weights
    ubatch: int
    gpu_layers: int | None
    gpus: tuple[Gpu | None, ...]
    read_bandwidth: float

    def settings(self, planned: Planned) -> Settings:
        return Settings(
            planned.context,
            planned.batch,
            ubatch=self.ubatch,
            gpu_layers=self.gpu_layers,
            host_bandwidth=DECODE_SHARE * self.read_bandwidth,
        )

    def memory(self, planned: Planned) -> list[DeviceMemory]:
        """By device, the CPU last."""
        return llama_memory(self.config, self.weights, self.settings(planned), self.gpus)

    def logits_bytes(self, planned: Planned) -> int:
        """The host's buffer of logits, which ``memory`` counts as the CPU's compute."""
        return output_bytes(self.config, self.settings(planned))

    def speed(self, planned: Planned) -> dict[str, Any]:
        """The ``predicted`` of a row of speed.

        ``tokens_per_second`` and its relative ``band`` on GPUs, for what the rule covers: decode of
        one sequence, and prefill into an empty cache. ``bound_tokens_per_second`` for decode on
        the CPU. Each is None where it does not apply.
        """
        rate = band = None
        if self.gpus:
            rate, band = self._gpu_speed(planned)
        return {
            "tokens_per_second": rate,
            "band": band,
            "bound_tokens_per_second": None if self.gpus else self._bound(planned),
        }

    def _gpu_speed(self, planned: Planned) -> tuple[float | None, float | None]:
        settings, devices = self.settings(planned), self.memory(planned)
        engine = Engine.LLAMA_CPP
        speed = None
        if None not in self.gpus:
            speed = predict_speed(self.config, self.weights, settings, engine, devices)
        if speed is None:
            return None, None
        if planned.phase is Phase.PREFILL:
            covered = planned.depth == 0 and planned.tokens * planned.batch >= _ESTIMATED_PROMPT
            if speed.prefill is None or not covered:
                return None, None
            return speed.prefill, _PREFILL_BAND
        if planned.batch > 1:
            return None, None
        depth = planned.mean_depth
        seconds = decode_seconds(self.config, self.weights, settings, engine, devices, depth)
        return 1 / seconds, speed.band

    def _bound(self, planned: Planned) -> float | None:
        """Tokens per second if reading memory were all: weights once per step, every cache.

        None for a model that the processor's own cache may hold.
        """
        if planned.phase is Phase.PREFILL:
            return None
        cache = cache_read_bytes(self.config, self.settings(planned), planned.mean_depth)
        nbytes = read_bytes(self.config, self.weights) + planned.batch * cache
        if nbytes < 2 * last_level_cache():
            return None
        return planned.batch * self.read_bandwidth / nbytes


def known_gpus(descriptions: Sequence[str]) -> tuple[Gpu | None, ...]:
    """The catalog's parts of these names, None for one that it lacks."""
    return tuple(match_gpu(description) for description in descriptions)
