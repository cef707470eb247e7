"""The tests of a speed run, whatever engine runs them, and a test as a row of ``report.json``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from qwen3q.errors import UsageError
from qwen3q.evaluate.speed_options import SpeedOptions


class Phase(StrEnum):
    """PREFILL reads a prompt at once; DECODE makes one token after another."""

    PREFILL = "prefill"
    DECODE = "decode"


class Planned(NamedTuple):
    """A test to run: ``tokens`` and ``depth`` are of each of ``batch`` sequences."""

    phase: Phase
    tokens: int
    depth: int
    batch: int

    @property
    def context(self) -> int:
        """Tokens that one sequence ends with."""
        return self.depth + self.tokens

    @property
    def cells(self) -> int:
        """Tokens that the cache ends with."""
        return self.context * self.batch

    @property
    def mean_depth(self) -> int:
        """Tokens in a sequence's cache halfway through the test."""
        return self.depth + self.tokens // 2


@dataclass(frozen=True, slots=True)
class SpeedTest:
    """One test's times.

    Attributes:
        samples: nanoseconds of each repeat.
        token_times: nanoseconds of each decoding step, all repeats; empty for prefill.
        peak_bytes: the process's largest resident set during the test; None where not known.
        device_bytes: GPU memory that the process holds after the test; None without NVML.
        joules_per_token: of the GPUs in use, over the repeats; None where not measured.
    """

    planned: Planned
    samples: tuple[int, ...]
    token_times: tuple[int, ...] = ()
    peak_bytes: int | None = None
    device_bytes: int | None = None
    joules_per_token: float | None = None

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repeat, all sequences together."""
        tokens = self.planned.tokens * self.planned.batch
        return [1e9 * tokens / sample for sample in self.samples]


def planned_tests(options: SpeedOptions) -> list[Planned]:
    """Prefill of every prompt, then decoding; by batch, by depth.

    Raises:
        UsageError: a length, depth, batch or count that makes no sense.
    """
    if min(options.prompts, default=1) < 1:
        raise UsageError(f"A prompt of {min(options.prompts)} tokens is below 1.")
    if options.generate < 0 or options.repeats < 1:
        raise UsageError(
            f"{options.generate} tokens to decode, {options.repeats} times: at least 0, once."
        )
    if min(options.depths, default=0) < 0:
        raise UsageError(f"A depth of {min(options.depths)} is below 0.")
    if min(options.batches, default=1) < 1:
        raise UsageError(f"A batch of {min(options.batches)} sequences is below 1.")
    shapes = [(batch, depth) for batch in options.batches for depth in options.depths]
    tests = [
        Planned(Phase.PREFILL, tokens, depth, batch)
        for batch, depth in shapes
        for tokens in options.prompts
    ]
    if options.generate:
        tests += [Planned(Phase.DECODE, options.generate, depth, batch) for batch, depth in shapes]
    return tests


def speed_row(test: SpeedTest) -> dict[str, Any]:
    """A test as ``report.json`` has it; speed is the median of the repeats."""
    rates, planned = test.rates, test.planned
    row: dict[str, Any] = {
        "phase": str(planned.phase),
        "tokens": planned.tokens,
        "depth": planned.depth,
        "batch": planned.batch,
        "repeats": len(rates),
        "tokens_per_second": median(rates),
        "tokens_per_second_mean": float(np.mean(rates)),
        "tokens_per_second_stddev": deviation(rates),
    }
    if planned.phase is Phase.PREFILL:
        row["first_token_ms"] = median(test.samples) / 1e6
    else:
        p50, p95, p99 = np.quantile(test.token_times, (0.5, 0.95, 0.99)) / 1e6
        row["latency_ms"] = {"p50": float(p50), "p95": float(p95), "p99": float(p99)}
    row["peak_memory_bytes"] = test.peak_bytes
    row["device_memory_bytes"] = test.device_bytes
    row["joules_per_token"] = test.joules_per_token
    return row


def deviation(values: tuple[int, ...] | list[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
