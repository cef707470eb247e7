"""What ``qwen3q eval speed`` adds to a measurement, against llama-bench on the same file.

    python -m eval.bench.speed_overhead FILE.gguf --bin LLAMA_CPP/build/bin --threads 2

BIN holds a llama-bench that was built with shared libraries (``-DBUILD_SHARED_LIBS=ON``) from the
source that llama-cpp-python brings; it is run on llama-cpp-python's own libraries, so that both
sides run the same kernels. Built otherwise it is compared too, but then compilers differ as well.

Both are whole commands with the same threads, batch, micro-batch, placement of weights and way of
waiting at OpenMP's barriers (the one that qwen3q sets for itself). They run in turn, the order
changing from round to round; with ``--together`` they run at the same time, so that what else the
machine does hits both alike. Then the same loop runs in this process with llama.cpp's two calls
timed, which gives what Python adds without the noise of a machine: the time between those calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from eval.bench.timing import machine
from qwen3q.llama.ggml import library_folder
from qwen3q.threads import calm_openmp, default_threads

PHASES = {"prefill": 512, "decode": 64}
LIMIT = 0.02
Rates = dict[str, list[tuple[float, float]]]
"""By phase, one pair per round: tokens per second of qwen3q and of llama-bench."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What both sides are asked for."""

    file: Path
    threads: int
    repeats: int
    program: Path


def ours(plan: Plan, phase: str) -> list[str]:
    """The command of qwen3q for one phase; decode comes with a prompt of one token."""
    prompt, generate = (PHASES[phase], 0) if phase == "prefill" else (1, PHASES[phase])
    command = [sys.executable, "-m", "qwen3q", "eval", "speed", str(plan.file), "--json"]
    command += ["--prompt", str(prompt), "--generate", str(generate)]
    return [*command, "--repeats", str(plan.repeats), "--threads", str(plan.threads)]


def llama_bench(plan: Plan, phase: str) -> list[str]:
    """The command of llama-bench for the same."""
    from qwen3q.llama.capi import has_amx

    prompt, generate = (PHASES[phase], 0) if phase == "prefill" else (0, PHASES[phase])
    command = [str(plan.program), "-m", str(plan.file), "-p", str(prompt), "-n", str(generate)]
    command += ["-r", str(plan.repeats), "-t", str(plan.threads), "-o", "json"]
    return [*command, "--repack", "0"] if has_amx() else command  # as qwen3q loads models there


def rate(output: bytes, phase: str) -> float:
    """Median tokens per second out of what either command prints."""
    printed = json.loads(output)
    if isinstance(printed, dict):
        rows = [row for row in printed["speed"] if row["phase"] == phase]
        return float(rows[0]["tokens_per_second"])
    return statistics.median(printed[0]["samples_ts"])


def run_round(plan: Plan, phase: str, number: int, *, together: bool) -> tuple[float, float]:
    """Both rates; the one that starts first changes from round to round."""
    commands = [ours(plan, phase), llama_bench(plan, phase)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(library_folder())}
    order = (0, 1) if number % 2 == 0 else (1, 0)
    outputs = [b"", b""]
    running = {}
    for side in order:
        process = subprocess.Popen(
            commands[side], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        running[side] = process
        if not together:
            outputs[side] = process.communicate()[0]
    for side, process in running.items():
        outputs[side] = outputs[side] or process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"{commands[side][0]} ended with {process.returncode}")
    first, second = (rate(output, phase) for output in outputs)
    return first, second


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
    options = SpeedOptions((PHASES["prefill"],), PHASES["decode"], (0,), 3, plan.threads)
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


def table(rates: Rates) -> tuple[list[str], float]:
    """Markdown lines, and by how much qwen3q is behind in the worse phase (median of rounds)."""
    lines = ["| tokens/s | qwen3q eval speed | llama-bench | difference of a round |",
             "|---|---|---|---|"]  # fmt: skip
    worst = 0.0
    for phase, pairs in rates.items():
        cells = [_spread(side, "{:.2f}") for side in zip(*pairs, strict=True)]
        ratios = [a / b - 1 for a, b in pairs]
        worst = max(worst, -statistics.median(ratios))
        lines.append(f"| {phase} {PHASES[phase]} | {' | '.join(cells)} | "
                     f"{_spread(ratios, '{:+.1%}')} |")  # fmt: skip
    return lines, worst


def _spread(values: Sequence[float], form: str) -> str:
    median, low, high = map(form.format, (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


def main() -> None:
    """Prints the comparison; exits with 1 if qwen3q is behind by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-bench")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="of each command")
    parser.add_argument("--together", action="store_true", help="both at the same time")
    arguments = parser.parse_args()
    calm_openmp()
    plan = Plan(arguments.file, arguments.threads, arguments.repeats, arguments.bin / "llama-bench")
    rates: Rates = {phase: [] for phase in PHASES}
    for number in range(arguments.rounds):
        for phase, pairs in rates.items():
            pairs.append(run_round(plan, phase, number, together=arguments.together))
            print(number + 1, phase, pairs[-1], file=sys.stderr, flush=True)
    lines, worst = table(rates)
    how = "at the same time" if arguments.together else "in turn"
    print(
        f"{machine()}, {plan.threads} threads; {arguments.rounds} rounds of {plan.repeats}, {how}"
    )
    print("\n" + "\n".join(lines))
    for phase, (share, microseconds) in outside(plan).items():
        print(f"\n{phase}: {microseconds:.0f} µs of a step outside llama.cpp's calls, {share:.3%}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
