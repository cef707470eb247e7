"""Writes ``memory.md`` and ``memory.json``: every figure the estimator must reach, and its rows."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.memory.checks import Check, judged
from eval.memory.grid import MODELS, Cell, run_grid
from eval.memory.sizes import gguf_checks, transformers_checks, vllm_load_checks, vllm_token_checks
from eval.memory.speeds import DISCRETE, speed_checks

HERE = Path(__file__).parent.parent
_COMPUTE_LIMIT, _TOTAL_LIMIT, _SPEED_LIMIT, _TABLE_SECONDS = 0.01, 0.005, 0.08, 0.3
_TIMED_RUNS = 20


def main() -> None:
    """Runs every comparison; exits with 1 if a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", type=Path, default=HERE / "truth")
    parser.add_argument("--out", type=Path, default=HERE / "reports")
    parser.add_argument("--no-grid", action="store_true", help="without llama.cpp")
    options = parser.parse_args()

    tensors, files = gguf_checks(options.truth)
    tokens, pools = vllm_token_checks(options.truth)
    sections = {
        "GGUF tensor bytes (exact: the rest of each file is a header)": tensors,
        "GGUF file size (0.02 %, or the rounding of the listing)": files,
        "transformers, Qwen's table (0.5 % BF16 and GPTQ, 1 % AWQ and FP8, 4 % input 1)":
            transformers_checks(options.truth),
        "vLLM, loaded weights (1.5 %)": vllm_load_checks(options.truth),
        "vLLM, tokens in a pool (3 %)": tokens,
        "vLLM, size of the pool (shown)": pools,
    }  # fmt: skip
    speeds = speed_checks(options.truth)
    discrete = [check for family in DISCRETE for check in speeds.get(family, [])]
    cells = [] if options.no_grid else list(run_grid())
    seconds = _table_seconds()

    verdicts = {name: all(c.holds for c in judged(rows)) for name, rows in sections.items()}
    speed_error = _mean(discrete)
    verdicts["decode speed, discrete NVIDIA and Radeon (mean 8 %)"] = speed_error < _SPEED_LIMIT
    if cells:
        verdicts["llama.cpp's dry run: weights and KV exact"] = all(
            cell.weights_and_kv_exact for cell in cells
        )
        verdicts["llama.cpp's dry run: compute within 1 %"] = (
            max(cell.compute_error for cell in cells) <= _COMPUTE_LIMIT
        )
        verdicts["llama.cpp's dry run: total within 0.5 %"] = (
            max(cell.total_error for cell in cells) <= _TOTAL_LIMIT
        )
    verdicts["one model's table in 0.3 s"] = seconds <= _TABLE_SECONDS
    options.out.mkdir(parents=True, exist_ok=True)
    text = _markdown(verdicts, sections, speeds, speed_error, cells, seconds)
    (options.out / "memory.md").write_text(text, encoding="utf-8")
    data: dict[str, Any] = {
        "reached": verdicts,
        "table_seconds": seconds,
        "sections": {name: [asdict(c) for c in rows] for name, rows in sections.items()},
        "speed": {family.value: [asdict(c) for c in rows] for family, rows in speeds.items()},
        "grid": {"cells": len(cells), "models": list(MODELS) if cells else []},
    }
    (options.out / "memory.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(text.split("\n## ")[0] + "\n")
    sys.exit(0 if all(verdicts.values()) else 1)


def _table_seconds() -> float:
    """The fastest of many runs of one model's full table, start of Python included."""
    command = [sys.executable, "-m", "qwen3q", "estimate", "qwen3-8b"]
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def _mean(checks: list[Check]) -> float:
    errors = [abs(check.error) for check in judged(checks)]
    return sum(errors) / len(errors) if errors else 0.0


def _markdown(
    verdicts: dict[str, bool],
    sections: dict[str, list[Check]],
    speeds: dict[Any, list[Check]],
    speed_error: float,
    cells: list[Cell],
    seconds: float,
) -> str:
    lines = ["# The estimator against the truth", "", "Made by `python -m eval.memory`.", ""]
    lines += ["| figure | reached |", "|---|---|"]
    lines += [f"| {name} | {'yes' if holds else 'NO'} |" for name, holds in verdicts.items()]
    lines += ["", f"One model's table: {seconds:.2f} s here ({platform.machine()}, "
              f"Python {platform.python_version()}), "
              f"the fastest of {_TIMED_RUNS}."]  # fmt: skip
    if cells:
        lines += _grid_lines(cells)
    for name, rows in sections.items():
        lines += ["", f"## {name}", "", *_table(rows)]
    lines += ["", "## Decode speed, tokens per second", ""]
    lines.append(f"Mean error on discrete NVIDIA and Radeon cards: {speed_error:.1%}.")
    for family, rows in speeds.items():
        lines += ["", f"### {family.value}: mean error {_mean(rows):.1%}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _grid_lines(cells: list[Cell]) -> list[str]:
    exact = sum(cell.ours == cell.theirs for cell in cells)
    counts = Counter(cell.model for cell in cells)
    worst = max(cells, key=lambda cell: cell.compute_error)
    lines = ["", "## llama.cpp's dry-run allocator", ""]
    lines.append(
        f"{len(cells)} cells: {exact} equal to the byte in weights, KV cache and compute buffer on "
        f"every device. Largest error of a compute buffer {worst.compute_error:.3%}, of a total "
        f"{max(cell.total_error for cell in cells):.3%}."
    )
    lines += [
        "",
        "Cells cross contexts (1,000 to 131,072), micro-batches (64, 512, 2,048), caches (f16, "
        "q8_0, f16/q4_0), flash attention on and off, one and four sequences, CPU, one and two "
        "devices, ten layers or all on them, and experts on the CPU.",
        "",
        "| model | cells |",
        "|---|---|",
        *(f"| {model} | {count} |" for model, count in counts.items()),
    ]
    return lines


def _table(rows: list[Check]) -> list[str]:
    lines = ["| row | predicted | true | error |", "|---|---|---|---|"]
    for check in judged(rows):
        mark = "" if check.holds else " **missed**"
        lines.append(
            f"| {check.row} | {check.predicted:,.2f} | {check.true:,.2f} | "
            f"{check.error:+.3%}{mark} |"
        )
    left_out = Counter(check.left_out for check in rows if check.left_out)
    lines += [f"\nLeft out, {count}: {reason}." for reason, count in left_out.items()]
    return lines


if __name__ == "__main__":
    main()
