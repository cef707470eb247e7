"""Quantizing to GGUF: qwen3q against llama.cpp's convert and quantize, and against pure ggml.

    python -m eval.bench.gguf MODEL --source LLAMA_CPP --bin LLAMA_CPP/build/bin --python PYTHON

MODEL is a checkpoint folder, such as ``python -m qwen3q.synthetic qwen3-0.6b MODEL`` makes.
PYTHON is an interpreter that can run llama.cpp's convert_hf_to_gguf.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from eval.bench.timing import Run, in_turn, machine, run
from qwen3q.llama.ggml import quantize_rows
from qwen3q.models.config import read_config
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import GGML_TYPES, file_type
from qwen3q.quantize.gguf import SLAB_WEIGHTS
from qwen3q.threads import available_threads

# convert refuses a tokenizer whose hash it does not know; the demo's is Qwen's by pattern
_CONVERT = """
import runpy, sys
sys.path.insert(0, {source!r})
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = ["convert_hf_to_gguf.py", {model!r}, "--outtype", "bf16", "--outfile", {out!r}]
runpy.run_path({source!r} + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def pure_seconds(model: Path, kind: str, threads: int) -> float:
    """Seconds that ``ggml_quantize_chunk`` alone takes for the plan's rows, data in cache."""
    plan = plan_gguf("m", read_config(model), file_type(kind))
    random = np.random.default_rng(0)

    def work(slab: tuple[str, int, int]) -> None:
        name, rows, columns = slab
        quantize_rows(data[columns][:rows], GGML_TYPES[name])

    slabs, data = [], {}
    for tensor in plan.tensors:
        columns = tensor.shape[-1]
        step = max(1, SLAB_WEIGHTS // columns)
        if columns not in data:
            data[columns] = random.normal(0, 0.02, (step, columns)).astype(np.float32)
        rows = tensor.numel // columns
        for first in range(0, rows, step):
            slabs.append((tensor.type, min(step, rows - first), columns))
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(work, slabs))
        return time.perf_counter() - started


def contestants(
    arguments: argparse.Namespace, kind: str, scratch: Path
) -> dict[str, Callable[[], Run]]:
    threads = str(arguments.threads)
    converted = scratch / "converted.gguf"

    def ours() -> Run:
        command = [sys.executable, "-m", "qwen3q", "quantize", str(arguments.model), "--force"]
        options = ["--to", f"gguf:{kind}", "--out", str(scratch), "--threads", threads]
        return run([*command, *options])

    def theirs() -> Run:
        script = _CONVERT.format(
            source=str(arguments.source), model=str(arguments.model), out=str(converted)
        )
        env = {"OMP_NUM_THREADS": threads}
        first = run([str(arguments.python), "-c", script], env)
        quantize = str(arguments.bin / "llama-quantize")
        second = run([quantize, str(converted), str(scratch / "theirs.gguf"), kind, threads])
        converted.unlink()
        return Run(first.seconds + second.seconds, max(first.peak_bytes, second.peak_bytes))

    def pure() -> Run:
        return Run(pure_seconds(arguments.model, kind, arguments.threads), 0)

    return {"qwen3q": ours, "convert + quantize": theirs, "pure ggml": pure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source folder")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-quantize")
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--type", action="append", dest="types")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    largest = 4 * max(spec.numel for spec in model_tensors(read_config(arguments.model)))
    bound = 600e6 + 3 * largest
    print(f"{machine()}; {arguments.threads} threads; medians of {arguments.repeats}")
    report = []
    for kind in arguments.types or ["Q4_K_M", "Q8_0"]:
        with tempfile.TemporaryDirectory(dir=arguments.model.parent) as scratch:
            results = in_turn(contestants(arguments, kind, Path(scratch)), arguments.repeats)
        ours, theirs, pure = (results[name] for name in results)
        print(f"\n{kind}")
        for name, (seconds, peak) in results.items():
            memory = f"  peak {peak / 1e6:6.0f} MB" if peak else ""
            print(f"  {name:<20}{seconds:8.2f} s{memory}")
        print(f"  convert + quantize / qwen3q   {theirs[0] / ours[0]:.2f}x")
        print(f"  pure ggml / qwen3q            {pure[0] / ours[0]:.2f}")
        print(f"  peak memory / bound           {ours[1] / bound:.2f} of {bound / 1e6:.0f} MB")
        report.append({"type": kind, "results": results, "memory_bound": bound})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": report}, indent=1))


if __name__ == "__main__":
    main()
