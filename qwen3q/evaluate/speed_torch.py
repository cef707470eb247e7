"""How fast a model folder runs in torch here: prefill and decode apart, through the cached model.

This is the toolkit's own torch path (weights in float32, or packed where memory is short), so the
figures say how long an evaluation in torch takes, not how fast a serving engine runs the format.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import torch

from qwen3q.devices import best_device
from qwen3q.errors import OutOfMemoryError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions, open_backend
from qwen3q.evaluate.nvml import GpuMeter, joules_per_token
from qwen3q.evaluate.residence import residence
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_run import SpeedRun, artefact_facts, beyond, gpu_machine, growth
from qwen3q.evaluate.speed_tests import (
    Phase,
    Planned,
    SpeedTest,
    planned_tests,
    speed_row,
)
from qwen3q.evaluate.torch_backend import TorchBackend
from qwen3q.evaluate.torch_generate import CachedModel, KVCache
from qwen3q.process_memory import peak_bytes, reset_peak
from qwen3q.progress import ProgressFn

_NOT_PREDICTED = {"tokens_per_second": None, "band": None, "bound_tokens_per_second": None}


def run_torch(
    artefact: Artefact,
    options: SpeedOptions,
    device: str | None,
    meter: GpuMeter,
    before: int | None,
    progress: ProgressFn,
) -> SpeedRun:
    """Times a folder; memory and speed have no prediction, as the estimator has no such engine.

    A model that does not fit into memory is not timed; the run's note says so.

    Args:
        before: resident set before this call.

    Raises:
        MissingPackageError: torch is not installed.
        Qwen3qError: the folder is broken, or a test makes no sense.
    """
    tests = planned_tests(options)
    try:
        residence(artefact, torch.device(device or best_device()))
    except OutOfMemoryError as error:
        return SpeedRun([], [], {}, note=f"{error.message} It was not timed.")
    chosen = BackendOptions(BackendKind.TORCH, options.threads, device=device)
    with open_backend(artefact, chosen, max(planned.context for planned in tests)) as backend:
        assert isinstance(backend, TorchBackend)
        model = backend.cached_model()
        runner = _Runner(model, backend, meter, before, options.repeats)
        measured = []
        for done, planned in enumerate(tests):
            progress(done, len(tests), "speed")
            measured.append(runner.measure(planned))
        progress(len(tests), len(tests), "speed")
        machine = gpu_machine(meter) | dict(backend.facts)
    facts = artefact_facts(artefact, "torch")
    rows = [facts | speed_row(test) | {"predicted": _NOT_PREDICTED} for test, _ in measured]
    test, memory = max(measured, key=lambda pair: pair[0].planned.cells)
    row = {"context": test.planned.context, "batch": test.planned.batch}
    return SpeedRun(rows, [facts | row | memory], machine, note=meter.note)


class _Runner:
    def __init__(
        self,
        model: CachedModel,
        backend: TorchBackend,
        meter: GpuMeter,
        before: int | None,
        repeats: int,
    ) -> None:
        self._model = model
        self._config = backend.config
        self._device = backend.device
        self._meter = meter
        self._before = before
        self._repeats = repeats
        self._synchronize = _synchronizer(backend.device)

    def measure(self, planned: Planned) -> tuple[SpeedTest, dict[str, Any]]:
        """One test, and the largest memory that it held."""
        reset_peak()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        generator = torch.Generator().manual_seed(0)
        shape = (planned.batch, planned.context)
        words = torch.randint(self._config.vocab_size, shape, generator=generator)
        words = words.to(self._device)
        caches = [self._model.cache(planned.context) for _ in range(planned.batch)]
        if planned.depth:
            self._model.step(words[:, : planned.depth], caches)
        self._repeat(planned, words, caches, warm_up=True)
        before = self._meter.joules()
        samples, token_times = [], []
        for _ in range(self._repeats):
            times = self._repeat(planned, words, caches)
            samples.append(sum(times))
            token_times += times if planned.phase is Phase.DECODE else []
        tokens = planned.tokens * planned.batch * self._repeats
        joules = joules_per_token(before, self._meter.joules(), tokens, sum(samples))
        held, on_device = self._held()
        test = SpeedTest(
            planned, tuple(samples), tuple(token_times), peak_bytes(), on_device, joules
        )
        return test, self._memory(caches, held)

    def _repeat(
        self,
        planned: Planned,
        words: torch.Tensor,
        caches: list[KVCache],
        *,
        warm_up: bool = False,
    ) -> list[int]:
        """Nanoseconds of one repeat from the depth: one figure for prefill, one per step."""
        depth, end = planned.depth, planned.context
        prefill = planned.phase is Phase.PREFILL
        width = planned.tokens if prefill else 1
        if warm_up and not prefill:
            end = depth + 1
        for cache in caches:
            cache.length = depth
        times = []
        self._synchronize()
        before = perf_counter_ns()
        for position in range(depth, end, width):
            self._model.step(words[:, position : position + width], caches)
            self._synchronize()
            now = perf_counter_ns()
            times.append(now - before)
            before = now
        return times

    def _held(self) -> tuple[int | None, int | None]:
        """Largest memory of the test where the model is, and what NVML or torch says of the GPU."""
        if self._device.type == "cpu":
            return growth(peak_bytes(), self._before), None
        if self._device.type == "cuda":
            peak = int(torch.cuda.max_memory_reserved(self._device))
            return peak, self._meter.used_bytes() or peak
        used = int(torch.mps.driver_allocated_memory())
        return used, used

    def _memory(self, caches: list[KVCache], held: int | None) -> dict[str, Any]:
        """The row of ``memory[]``; what is neither weights nor cache is the rest."""
        weights = self._model.weight_bytes
        kv = sum(cache.nbytes for cache in caches)
        return {
            "device": str(self._device),
            "kv_type": "f32",
            "weights_bytes": weights,
            "kv_bytes": kv,
            "compute_bytes": None,
            "rest_bytes": beyond(held, weights + kv),
            "predicted": None,
        }


def _synchronizer(device: torch.device) -> Callable[[], object]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
