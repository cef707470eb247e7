"""What every peer's `quantize.py` shares: its arguments, the clock, and the line it reports.

Runs inside the peers' environments, so it needs only the standard library and numpy.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPORT_MARK = "PEER-REPORT "
"""Starts the one line of a peer's output that the driver reads."""


@dataclass(slots=True)
class Job:
    """One quantization by one peer."""

    model: Path
    out: Path
    format: str
    """`gptq:int4`, `awq:int4`, `int4` (W4A16) or `int8` (W8A8)."""
    tokens: NDArray[np.int64]
    """Calibration tokens `[rows, length]`."""
    threads: int
    option: str
    """A peer's named variant, `default` for its own defaults."""
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Notes the block's wall and processor seconds under `load`, `quantize` or `save`."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.seconds[stage] = time.perf_counter() - wall
        self.cpu_seconds[stage] = time.process_time() - processor

    def report(self, package: str, **notes: Any) -> None:
        """Prints the report line: version and seconds per stage."""
        fields = {
            "version": version(package),
            "seconds": round(self.seconds["quantize"], 2),
            "cpu_seconds": round(self.cpu_seconds["quantize"], 2),
            "load_seconds": round(self.seconds.get("load", 0.0), 2),
            "save_seconds": round(self.seconds.get("save", 0.0), 2),
            "threads": self.threads,
            **notes,
        }
        print(f"\n{REPORT_MARK}{json.dumps(fields)}", flush=True)


def read_job() -> Job:
    """The job from the command line; fixes the thread count of torch before anything runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", required=True)
    parser.add_argument("--tokens", type=Path, required=True, help=".npy of [rows, length]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", default="default")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens = np.load(args.tokens, allow_pickle=False)
    return Job(args.model, args.out, args.format, tokens, args.threads, args.option)
