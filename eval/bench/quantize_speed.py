"""Quantizing with calibration, side by side with peers, and against the cores' matrix rate.

    python -m eval.bench.quantize_speed MODEL --text TEXT --format gptq:int4 --format awq:int4

Everybody gets the same token rows and the same number of threads, and runs in a process of its
own. qwen3q runs twice: by default, and with recipe ``fast``; both take as many of the rows as the
recipe says are enough, and the operations counted are the default's. ``--kept FILE`` takes peers'
figures from ``results.json`` of ``python -m eval.peers compare`` (made with the same rows and
threads), so that the slow ones need not run again. A peer whose environment is not made and that
has no kept figure is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench.timing import machine
from eval.peers import envs
from eval.peers.compare import QUANTIZERS
from eval.peers.job import REPORT_MARK
from eval.peers.rows import token_rows
from qwen3q.calibrate.enough import rows_enough
from qwen3q.models.config import Qwen3Config, read_config
from qwen3q.models.tensors import Role, layer_tensors
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.threads import available_threads

PEERS = ("gptqmodel", "llmcompressor", "autoawq")
LIMIT_SECONDS = 3 * 3600.0
_STAGES = ((Role.Q, Role.K, Role.V), (Role.O,), (Role.GATE, Role.UP), (Role.DOWN,))
"""Linears that read one input."""
TARGETS = {"gptq:int4": 4.0, "awq:int4": 8.0}
"""How many times faster than every peer it is to be."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One quantization: seconds on the wall, and of processor time over all threads."""

    who: str
    seconds: float
    cpu_seconds: float
    note: str = ""


def flops(config: Qwen3Config, rows: int, length: int, sweeps: int = 2) -> dict[str, float]:
    """Floating-point operations that GPTQ with smoothing needs, by part.

    A product of ``[a, b]`` and ``[b, c]`` counts 2abc; of symmetric ones half is needed. Experts
    get the share of the tokens that the router gives them on average.
    """
    tokens = rows * length
    forward = statistics = solver = 0.0
    for layer in range(config.num_hidden_layers):
        forward += 2 * 2 * tokens * length * config.q_size  # causal: half of scores and mixing
        linears = [spec for spec in layer_tensors(config, layer) if spec.is_linear]
        for expert, specs in groupby(linears, lambda spec: spec.expert):
            shapes = {spec.role: spec.shape for spec in specs}
            share = 1.0 if expert is None else config.num_experts_per_tok / config.num_experts
            seen = tokens * share
            forward += 2 * 2 * seen * sum(out * columns for out, columns in shapes.values())
            for roles in _STAGES:
                if roles[0] not in shapes:
                    continue
                columns = shapes[roles[0]][1]
                out = sum(shapes[role][0] for role in roles)
                square = columns * columns
                statistics += seen * (square + 2 * columns * min(out, columns))
                statistics += 2 * seen * out * columns if out < columns else 0
                statistics += seen / 4 * square  # the sample on which scales are searched
                solver += 2 * columns**3 / 3  # two Cholesky factors
                solver += square * out * (2 + 1 + 2 * sweeps + 3)
    return {"forward passes": forward, "Hessians and drifts": statistics, "solver": solver}


def matrix_rate(size: int = 2048) -> float:
    """Float32 operations per processor second of a torch matmul on one core, the best of some.

    Processor seconds, since on a busy machine those on the wall say more of the others.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(8):
        started = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - started)
    torch.set_num_threads(threads)
    return 2 * size**3 / best


def run_one(
    who: str, model: Path, scheme: str, tokens: Path, threads: int, option: str = "default"
) -> Timed:
    """One run in a fresh process, by the driver under ``eval/peers``; its artefact is dropped."""
    with tempfile.TemporaryDirectory(dir=tokens.parent) as out:
        arguments = [str(model.resolve()), f"{out}/made", "--format", scheme]
        arguments += ["--tokens", str(tokens.resolve()), "--threads", str(threads)]
        arguments += ["--option", option]
        done = envs.run_module(who, f"{who}.quantize", arguments, threads, LIMIT_SECONDS)
    found = [line for line in done.stdout.splitlines() if line.startswith(REPORT_MARK)]
    if done.returncode or not found:
        raise SystemExit(f"{who} {scheme} failed:\n{done.stdout[-2000:]}")
    report = json.loads(found[-1].removeprefix(REPORT_MARK))
    name = f"{who} {report['version'] if option == 'default' else option}"
    return Timed(name, report["seconds"], report["cpu_seconds"])


def kept_rows(path: Path | None, model: str, scheme: str, threads: int) -> dict[str, Timed]:
    """Peers' figures of an earlier run on a model, by peer."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path else []
    return {
        row["quantizer"]: Timed(
            f"{row['quantizer']} {row['version']}", row["seconds"], row["cpu_seconds"], "kept"
        )
        for row in rows
        if (row["model"], row["format"], row["threads"]) == (model, scheme, threads)
        and row["option"] == "default"
        and "seconds" in row
    }


def _rows_run(config: Qwen3Config, recipe: str | None, shape: tuple[int, ...]) -> int:
    """Rows of ``shape`` that qwen3q runs."""
    text = job_of(QuantizeRequest(formats=("gptq:int4",), recipe=recipe)).calibration
    return min(shape[0], rows_enough(config, text.tokens_per_channel, shape[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="calibration text")
    parser.add_argument("--format", action="append", dest="formats")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated")
    parser.add_argument("--kept", type=Path, help="results.json with peers' figures")
    parser.add_argument("--kept-model", help="whose figures to take there; default MODEL's name")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    model: Path = arguments.model
    threads: int = arguments.threads
    print(f"{machine()}; {threads} threads; {arguments.rows} x {arguments.length} tokens")
    report = []
    with tempfile.TemporaryDirectory() as scratch:
        tokens = Path(scratch) / "tokens.npy"
        rows = token_rows(model, arguments.text, arguments.length, arguments.rows)
        np.save(tokens, rows)
        config = read_config(model)
        enough = {name: _rows_run(config, name, rows.shape) for name in (None, "fast")}
        needed = flops(config, enough[None], arguments.length)
        print(f"qwen3q runs {enough[None]} of the rows, with recipe fast {enough['fast']}")
        for scheme in arguments.formats or list(TARGETS):
            rate = matrix_rate()
            ours = run_one("qwen3q", model, scheme, tokens, threads)
            fast = run_one("qwen3q", model, scheme, tokens, threads, "fast")
            rate = max(rate, matrix_rate())
            kept_model = arguments.kept_model or model.name
            kept = kept_rows(arguments.kept, kept_model, scheme, threads)
            timed = [ours, fast]
            for peer in arguments.peers.split(","):
                if peer in kept:
                    timed.append(kept[peer])
                elif scheme in QUANTIZERS.get(peer, ()) and envs.python_of(peer).exists():
                    timed.append(run_one(peer, model, scheme, tokens, threads))
            bound = sum(needed.values()) / rate
            print(f"\n{scheme}: at least {TARGETS.get(scheme, 1):g}x faster is wanted")
            print(f"  {'':<24}{'':>18}{'over default':>16}{'over fast':>16}")
            print(f"  {'':<24}{'wall s':>9}{'CPU s':>9}{'wall':>8}{'CPU':>8}{'wall':>8}{'CPU':>8}")
            for run in timed:
                line = f"  {run.who:<24}{run.seconds:9.1f}{run.cpu_seconds:9.1f}"
                for base in (ours, fast):
                    line += f"{run.seconds / base.seconds:7.2f}x"
                    line += f"{run.cpu_seconds / base.cpu_seconds:7.2f}x"
                print(f"{line}  {run.note}", flush=True)
            parts = ", ".join(f"{name} {count / 1e12:.2f}" for name, count in needed.items())
            print(f"  {sum(needed.values()) / 1e12:.2f} TFLOP ({parts})")
            print(
                f"  float32 matrix rate {rate / 1e9:.0f} GFLOP per core and second: "
                f"{bound:.1f} CPU s; ours takes {ours.cpu_seconds / bound:.2f} of that, and "
                f"{ours.seconds * threads / bound:.2f} on the wall"
            )
            report.append(
                {
                    "format": scheme,
                    "runs": [
                        {
                            "who": r.who,
                            "seconds": r.seconds,
                            "cpu_seconds": r.cpu_seconds,
                            "note": r.note,
                        }
                        for r in timed
                    ],
                    "flops": needed,
                    "matrix_rate": rate,
                }
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": report}, indent=1))


if __name__ == "__main__":
    main()
