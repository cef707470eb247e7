"""What ``qwen3q eval speed`` adds to a measurement, against llama-bench on the same file.

    python -m eval.bench.speed_overhead FILE.gguf --bin LLAMA_CPP/build/bin --threads 2

Both are whole commands in turn, the order changing from round to round, with the same threads,
batch, micro-batch, placement of weights and way of waiting at OpenMP's barriers (the one that
qwen3q sets for itself). Then the same loop runs in this process with llama.cpp's two calls timed,
which gives what Python adds without the noise of a machine: the time between those calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from eval.bench.timing import machine
from qwen3q.llama.threads import calm_openmp, default_threads

PROMPT, GENERATE = 512, 64
LIMIT = 0.02
Rates = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What both sides are asked for."""

    file: Path
    threads: int
    repeats: int


def ours(plan: Plan) -> Rates:
    """Median tokens per second of prefill and decode, as ``qwen3q eval speed --json`` has them."""
    command = [sys.executable, "-m", "qwen3q", "eval", "speed", str(plan.file), "--json"]
    command += ["--prompt", str(PROMPT), "--generate", str(GENERATE)]
    command += ["--repeats", str(plan.repeats), "--threads", str(plan.threads)]
    run = subprocess.run(command, check=True, capture_output=True)
    return {row["phase"]: row["tokens_per_second"] for row in json.loads(run.stdout)["speed"]}


def llama_bench(plan: Plan, program: Path) -> Rates:
    """The same from ``llama-bench -o json``."""
    from qwen3q.llama.capi import has_amx

    command = [str(program), "-m", str(plan.file), "-p", str(PROMPT), "-n", str(GENERATE)]
    command += ["-r", str(plan.repeats), "-t", str(plan.threads), "-o", "json"]
    if has_amx():  # as qwen3q loads models there
        command += ["--repack", "0"]
    run = subprocess.run(command, check=True, capture_output=True)
    prefill, decode = json.loads(run.stdout)
    return {
        "prefill": statistics.median(prefill["samples_ts"]),
        "decode": statistics.median(decode["samples_ts"]),
    }


def outside(plan: Plan) -> dict[str, tuple[float, float]]:
    """What a step spends outside llama.cpp's calls: share of its time, and microseconds (medians).

    A step is a prompt, or one decoded token.
    """
    from qwen3q.evaluate.speed import measure_speed
    from qwen3q.evaluate.speed_options import SpeedOptions
    from qwen3q.llama import context, model

    spent: list[int] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = perf_counter_ns()
            result = function(*arguments)
            spent.append(perf_counter_ns() - started)
            return result

        return call

    lib = context.lib
    plain = lib.llama_decode, lib.llama_synchronize
    lib.llama_decode, lib.llama_synchronize = map(timed, plain)
    found = {}
    options = SpeedOptions((PROMPT,), GENERATE, (0,), 3, plan.threads)
    try:
        with model.LlamaModel(plan.file) as loaded:
            for measured in measure_speed(loaded, options):
                test = measured.test
                steps = test.token_times or test.samples
                inside = np.reshape(spent[-2 * len(steps) :], (-1, 2)).sum(1)
                extra = np.asarray(steps) - inside
                found[str(test.planned.phase)] = (
                    float(np.median(extra / steps)),
                    float(np.median(extra)) / 1e3,
                )
    finally:
        lib.llama_decode, lib.llama_synchronize = plain
    return found


def main() -> None:
    """Prints the comparison; exits with 1 if the medians differ by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-bench")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="of each command")
    arguments = parser.parse_args()
    calm_openmp()
    plan = Plan(arguments.file, arguments.threads, arguments.repeats)
    contestants: dict[str, Callable[[], Rates]] = {
        "qwen3q eval speed": lambda: ours(plan),
        "llama-bench": lambda: llama_bench(plan, arguments.bin / "llama-bench"),
    }
    runs: dict[str, list[Rates]] = {name: [] for name in contestants}
    for number in range(arguments.rounds):
        names = list(contestants)
        for name in names if number % 2 == 0 else names[::-1]:
            runs[name].append(contestants[name]())
            print(f"{number + 1} {name}: {runs[name][-1]}", file=sys.stderr)
    lines, worst = table(runs)
    print(f"{machine()}, {plan.threads} threads; {arguments.rounds} rounds of {plan.repeats}\n")
    print("\n".join(lines))
    for phase, (share, microseconds) in outside(plan).items():
        print(f"\n{phase}: {microseconds:.0f} µs of a step outside llama.cpp's calls, {share:.3%}")
    sys.exit(worst > LIMIT)


def table(runs: dict[str, list[Rates]]) -> tuple[list[str], float]:
    """Markdown lines, and how much less the worst of our medians is than llama-bench's."""
    lines = ["| | qwen3q eval speed | llama-bench | difference | round by round |",
             "|---|---|---|---|---|"]  # fmt: skip
    worst = 0.0
    mine, theirs = runs.values()
    for phase in ("prefill", "decode"):
        sides = [[rates[phase] for rates in side] for side in (mine, theirs)]
        medians = [statistics.median(side) for side in sides]
        ratios = [a / b - 1 for a, b in zip(*sides, strict=True)]
        cells = [f"{m:.2f} ({min(s):.2f} to {max(s):.2f})"
                 for m, s in zip(medians, sides, strict=True)]  # fmt: skip
        difference = medians[0] / medians[1] - 1
        worst = max(worst, -difference)
        lines.append(
            f"| {phase} {PROMPT if phase == 'prefill' else GENERATE}, tokens/s | {cells[0]} | "
            f"{cells[1]} | {difference:+.1%} | {statistics.median(ratios):+.1%} "
            f"({min(ratios):+.1%} to {max(ratios):+.1%}) |"
        )
    return lines, worst


if __name__ == "__main__":
    main()
