"""How fast a GGUF file runs here: prefill and decode apart, as ``llama-bench`` measures them.

Each test has its own context, with the settings that llama-bench takes by default. The cache is
filled to the depth once, a warm-up is thrown away, and every repeat starts at the depth again.
Tokens are random, as in llama-bench. Several sequences are decoded side by side as
``llama-batched-bench`` does: each has its own part of the cache, and a step makes one token of
each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.evaluate.nvml import GpuMeter, joules_per_token
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_tests import (
    Phase,
    Planned,
    SpeedTest,
    deviation,
    planned_tests,
)
from qwen3q.llama.breakdown import DeviceBuffers, memory_breakdown
from qwen3q.llama.capi import VERSION, has_amx, lib
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.devices import cpu_devices, gpu_devices
from qwen3q.llama.model import LlamaModel
from qwen3q.process_memory import peak_bytes, reset_peak
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import model_threads

BATCH = 2048
UBATCH = 512
_BENCH_DEFAULTS = {
    "cpu_mask": "0x0",
    "cpu_strict": False,
    "poll": 50,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": False,
    "no_op_offload": 0,
    "no_host": False,
    "fit_target": 0,
    "fit_min_ctx": 0,
}
"""What llama-bench says of settings that are left alone; its scripts ask for each."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A test and the buffers that llama.cpp held for it; none where it does not say."""

    test: SpeedTest
    buffers: tuple[DeviceBuffers, ...]


def measure_speed(
    model: LlamaModel,
    options: SpeedOptions,
    progress: ProgressFn = silent,
    meter: GpuMeter | None = None,
) -> Iterator[Measured]:
    """Times every prompt length and decoding, at every depth and batch.

    Args:
        meter: made before the model was loaded; for GPU memory and energy.

    Raises:
        UsageError: a length, depth, batch or count that makes no sense.
        LlamaError: llama.cpp fails, such as for want of memory.
    """
    tests = planned_tests(options)
    for done, planned in enumerate(tests):
        progress(done, len(tests), "speed")
        yield _measure(model, planned, options, meter)
    progress(len(tests), len(tests), "speed")


def _measure(
    model: LlamaModel, planned: Planned, options: SpeedOptions, meter: GpuMeter | None
) -> Measured:
    depth = planned.depth
    rng = np.random.default_rng(0)
    shape = (planned.batch, planned.context)
    words = rng.integers(0, model.vocab_size, shape).astype(np.int32)
    context = ContextOptions(
        context=planned.context,
        sequences=planned.batch,
        batch=BATCH,
        ubatch=UBATCH,
        threads=options.threads,
    )
    reset_peak()
    with LlamaContext(model, context) as llama:
        if depth:
            _read(llama, words[:, :depth], 0)
        samples: list[int] = []
        token_times: list[int] = []
        _repeat(llama, planned, words, warm_up=True)
        before = meter.joules() if meter else None
        for _ in range(options.repeats):
            times = _repeat(llama, planned, words)
            samples.append(sum(times))
            token_times += times if planned.phase is Phase.DECODE else []
        after = meter.joules() if meter else None
        tokens = planned.tokens * planned.batch * options.repeats
        test = SpeedTest(
            planned,
            tuple(samples),
            tuple(token_times),
            peak_bytes(),
            meter.used_bytes() if meter else None,
            joules_per_token(before, after, tokens, sum(samples)),
        )
        return Measured(test, tuple(memory_breakdown(llama.handle)))


def _repeat(
    llama: LlamaContext, planned: Planned, words: NDArray[np.int32], *, warm_up: bool = False
) -> list[int]:
    """Nanoseconds of one repeat from the depth: one figure for prefill, one per step of decode."""
    for sequence in range(planned.batch):
        llama.keep(planned.depth, sequence)
    if planned.phase is Phase.PREFILL:
        return [_read(llama, words[:, planned.depth :], planned.depth)]
    # llama-bench warms up with a single token too
    ahead = words[:, planned.depth :][:, : 1 if warm_up else None]
    return _decode(llama, ahead, planned.depth)


def _read(llama: LlamaContext, words: NDArray[np.int32], position: int) -> int:
    """Nanoseconds to read ``words`` (int32 ``[sequences, tokens]``) from ``position`` on.

    The last token of each sequence gives logits.
    """
    started = perf_counter_ns()
    count, length = words.shape
    tokens = words.ravel()
    sequences, offsets = np.divmod(np.arange(count * length, dtype=np.int32), np.int32(length))
    for first in range(0, len(tokens), BATCH):
        part = slice(first, first + BATCH)
        llama.decode(
            tokens[part],
            offsets[part] + position,
            sequences=sequences[part],
            outputs=offsets[part] == length - 1,
        )
    lib.llama_synchronize(llama.handle)
    return perf_counter_ns() - started


def _decode(llama: LlamaContext, words: NDArray[np.int32], position: int) -> list[int]:
    """Nanoseconds of each step; a step is one token of each row of ``words``."""
    times = []
    sequences = np.arange(len(words), dtype=np.int32)
    before = perf_counter_ns()
    for offset in range(words.shape[1]):
        if len(words) == 1:
            llama.decode_one(int(words[0, offset]), position + offset)
        else:
            here = np.full(len(words), position + offset, np.int32)
            llama.decode(words[:, offset], here, sequences=sequences, outputs=True)
        lib.llama_synchronize(llama.handle)
        now = perf_counter_ns()
        times.append(now - before)
        before = now
    return times


def llama_bench_row(model: LlamaModel, test: SpeedTest, options: SpeedOptions) -> dict[str, Any]:
    """A test of one sequence under the names that ``llama-bench -o json`` uses, for its tools."""
    planned, rates = test.planned, test.rates
    prefill = planned.phase is Phase.PREFILL
    gpus = gpu_devices()
    return {
        "build_commit": f"llama-cpp-python {VERSION}",
        "build_number": 0,
        "cpu_info": ", ".join(cpu_devices()),
        "gpu_info": ", ".join(gpus),
        "backends": "GPU" if gpus else "CPU",
        "model_filename": str(model.path),
        "model_type": _description(model),
        "model_size": model.nbytes,
        "model_n_params": model.parameters,
        "n_batch": BATCH,
        "n_ubatch": UBATCH,
        "n_threads": model_threads(options.threads, model.hidden_size),
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": model.options.gpu_layers,
        "repack": not has_amx(),
        **_BENCH_DEFAULTS,
        "n_prompt": planned.tokens if prefill else 0,
        "n_gen": 0 if prefill else planned.tokens,
        "n_depth": planned.depth,
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(float(np.mean(test.samples))),
        "stddev_ns": round(deviation(test.samples)),
        "avg_ts": float(np.mean(rates)),
        "stddev_ts": deviation(rates),
        "samples_ns": list(test.samples),
        "samples_ts": rates,
    }


def _description(model: LlamaModel) -> str:
    buffer = ctypes.create_string_buffer(256)
    lib.llama_model_desc(model.handle, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
