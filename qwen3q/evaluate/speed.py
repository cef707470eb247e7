"""How fast a GGUF file runs here: prefill and decode apart, by depth, as ``llama-bench`` measures.

Each test has its own context. The cache is filled to the depth once, a warm-up is thrown away, and
every repeat starts at the depth again. Tokens are random, as in llama-bench.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import UsageError
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.llama.capi import VERSION, lib
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.devices import gpu_devices
from qwen3q.llama.model import LlamaModel
from qwen3q.llama.threads import default_threads
from qwen3q.progress import ProgressFn, silent

BATCH = 2048
UBATCH = 512


class Phase(StrEnum):
    """PREFILL reads a prompt at once; DECODE makes one token after another."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """One test's times.

    Attributes:
        tokens: read or decoded per repeat.
        depth: tokens in the cache before.
        samples: nanoseconds of each repeat.
        token_times: nanoseconds of each decoded token, all repeats; empty for prefill.
        peak_bytes: the process's largest resident set during the test; None where not known.
    """

    phase: Phase
    tokens: int
    depth: int
    samples: tuple[int, ...]
    token_times: tuple[int, ...]
    peak_bytes: int | None

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repeat."""
        return [1e9 * self.tokens / sample for sample in self.samples]


def measure_speed(
    model: LlamaModel, options: SpeedOptions, progress: ProgressFn = silent
) -> Iterator[SpeedTest]:
    """Times every prompt length and decoding at every depth.

    Raises:
        UsageError: a length, depth or count that makes no sense.
        LlamaError: llama.cpp fails, such as for want of memory.
    """
    if min(options.prompts, default=1) < 1 or options.generate < 0 or options.repeats < 1:
        raise UsageError("Lengths and repeats must be at least 1.")
    if min(options.depths, default=0) < 0:
        raise UsageError(f"A depth of {min(options.depths)} is below 0.")
    tests = [
        (Phase.PREFILL, tokens, depth) for depth in options.depths for tokens in options.prompts
    ]
    if options.generate:
        tests += [(Phase.DECODE, options.generate, depth) for depth in options.depths]
    for done, (phase, tokens, depth) in enumerate(tests):
        progress(done, len(tests), "speed")
        yield _measure(model, phase, tokens, depth, options)
    progress(len(tests), len(tests), "speed")


def _measure(
    model: LlamaModel, phase: Phase, tokens: int, depth: int, options: SpeedOptions
) -> SpeedTest:
    rng = np.random.default_rng(0)
    words = rng.integers(0, model.vocab_size, depth + tokens).astype(np.int32)
    context = ContextOptions(
        context=depth + tokens, batch=BATCH, ubatch=UBATCH, outputs=1, threads=options.threads
    )
    _reset_peak()
    with LlamaContext(model, context) as llama:
        _read(llama, words[:depth], 0)
        samples, token_times = [], []
        for repeat in range(options.repeats + 1):
            llama.keep(depth)
            if phase is Phase.PREFILL:
                times = [_read(llama, words[depth:], depth)]
            else:
                # the warm-up decodes one token, as llama-bench's does
                ahead = words[depth : depth + 1] if repeat == 0 else words[depth:]
                times = _decode(llama, ahead, depth)
            if repeat:
                samples.append(sum(times))
                token_times += times if phase is Phase.DECODE else []
        peak = _peak_bytes()
    return SpeedTest(phase, tokens, depth, tuple(samples), tuple(token_times), peak)


def _read(llama: LlamaContext, tokens: NDArray[np.int32], position: int) -> int:
    """Nanoseconds to read ``tokens`` at ``position``; the last gives logits."""
    started = perf_counter_ns()
    for first in range(0, len(tokens), BATCH):
        part = tokens[first : first + BATCH]
        positions = np.arange(first, first + len(part), dtype=np.int32) + position
        outputs = positions == position + len(tokens) - 1
        llama.decode(part, positions, outputs=outputs)
    lib.llama_synchronize(llama.handle)
    return perf_counter_ns() - started


def _decode(llama: LlamaContext, tokens: NDArray[np.int32], position: int) -> list[int]:
    """Nanoseconds of each token, one after another."""
    times = []
    before = perf_counter_ns()
    for offset, token in enumerate(tokens.tolist()):
        llama.decode_one(token, position + offset)
        lib.llama_synchronize(llama.handle)
        now = perf_counter_ns()
        times.append(now - before)
        before = now
    return times


def speed_row(test: SpeedTest) -> dict[str, Any]:
    """A test as ``report.json`` has it; speed is the median of the repeats."""
    rates = test.rates
    row: dict[str, Any] = {
        "phase": str(test.phase),
        "tokens": test.tokens,
        "depth": test.depth,
        "repeats": len(rates),
        "tokens_per_second": median(rates),
        "tokens_per_second_mean": float(np.mean(rates)),
        "tokens_per_second_stddev": _deviation(rates),
    }
    if test.phase is Phase.PREFILL:
        row["first_token_ms"] = median(test.samples) / 1e6
    else:
        p50, p95, p99 = np.quantile(test.token_times, (0.5, 0.95, 0.99)) / 1e6
        row["latency_ms"] = {"p50": float(p50), "p95": float(p95), "p99": float(p99)}
    if test.peak_bytes is not None:
        row["peak_memory_bytes"] = test.peak_bytes
    return row


def llama_bench_row(model: LlamaModel, test: SpeedTest, options: SpeedOptions) -> dict[str, Any]:
    """A test under the names that ``llama-bench -o json`` uses, for its tools."""
    prefill = test.phase is Phase.PREFILL
    rates = test.rates
    gpus = gpu_devices()
    return {
        "build_commit": f"llama-cpp-python {VERSION}",
        "build_number": 0,
        "cpu_info": "",
        "gpu_info": ", ".join(gpus),
        "backends": "GPU" if gpus else "CPU",
        "model_filename": str(model.path),
        "model_type": _description(model),
        "model_size": model.nbytes,
        "model_n_params": model.parameters,
        "n_batch": BATCH,
        "n_ubatch": UBATCH,
        "n_threads": options.threads or default_threads(),
        "type_k": "f16",
        "type_v": "f16",
        "n_prompt": test.tokens if prefill else 0,
        "n_gen": 0 if prefill else test.tokens,
        "n_depth": test.depth,
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(float(np.mean(test.samples))),
        "stddev_ns": round(_deviation(test.samples)),
        "avg_ts": float(np.mean(rates)),
        "stddev_ts": _deviation(rates),
        "samples_ns": list(test.samples),
        "samples_ts": rates,
    }


def _description(model: LlamaModel) -> str:
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    lib.llama_model_desc(model.handle, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _deviation(values: tuple[int, ...] | list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _reset_peak() -> None:
    """Starts the kernel's record of the largest resident set anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return None
