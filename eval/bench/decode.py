"""Decoding: qwen3q's loop, sampling and text included, against llama-bench's tg128.

    python -m eval.bench.decode FILE.gguf --bin LLAMA_CPP/build/bin --threads 4

llama-bench decodes random tokens and samples nothing. It runs twice: with OpenMP's own way of
waiting at barriers, and with the short one that qwen3q sets; on a busy machine they differ much.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from eval.bench.timing import machine
from qwen3q.threads import calm_openmp, default_threads

TOKENS = 128


def our_rate(file: Path, threads: int) -> float:
    """Tokens per second of one answer in this process, after a short one to warm up."""
    from qwen3q.chat.session import THINKING_SAMPLING
    from qwen3q.llama.context import ContextOptions, LlamaContext
    from qwen3q.llama.generate import Generator
    from qwen3q.llama.model import LlamaModel
    from qwen3q.llama.text import TextStream

    options = ContextOptions(context=256, outputs=1, threads=threads)
    with LlamaModel(file) as model, LlamaContext(model, options) as context:
        generator = Generator(context)
        prompt = model.tokenize("The sea").tolist()
        list(generator.generate(prompt, THINKING_SAMPLING, max_tokens=8))
        stream = TextStream(model)
        started = perf_counter()
        for token in generator.generate(prompt, THINKING_SAMPLING, max_tokens=TOKENS + 1):
            stream.feed(token)
        seconds = perf_counter() - started - generator.timings.prefill_seconds
        decoded = generator.timings.generated_tokens - 1
    if decoded < TOKENS:
        raise SystemExit(f"{file} ended its answer after {decoded} tokens; use a random model")
    return decoded / seconds


def run_ours(file: Path, threads: int, env: dict[str, str]) -> float:
    code = (
        "import sys; from pathlib import Path; from eval.bench.decode import our_rate; "
        "print(our_rate(Path(sys.argv[1]), int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(file), str(threads)]
    return float(subprocess.run(command, env=env, check=True, capture_output=True).stdout)


def run_llama_bench(program: Path, file: Path, threads: int, env: dict[str, str]) -> float:
    from qwen3q.llama.capi import has_amx

    command = [str(program), "-m", str(file), "-p", "0", "-n", str(TOKENS), "-r", "1",
               "-t", str(threads), "-o", "json"]  # fmt: skip
    if has_amx():  # as qwen3q loads models there
        command += ["--repack", "0"]
    run = subprocess.run(command, env=env, check=True, capture_output=True)
    return float(json.loads(run.stdout)[0]["avg_ts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-bench")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    own = dict(os.environ)
    calm_openmp()
    calm = dict(os.environ)
    program = arguments.bin / "llama-bench"
    print(f"{machine()}; {arguments.threads} threads; medians of {arguments.repeats}")
    report = []
    for file in arguments.files:
        rates: dict[str, list[float]] = {}
        for _ in range(arguments.repeats):
            threads = arguments.threads
            for name, rate in (
                ("qwen3q", run_ours(file, threads, calm)),
                ("llama-bench", run_llama_bench(program, file, threads, own)),
                ("llama-bench, waiting alike", run_llama_bench(program, file, threads, calm)),
            ):
                rates.setdefault(name, []).append(rate)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"\n{file.name}, {TOKENS} tokens")
        for name, median in medians.items():
            low, high = min(rates[name]), max(rates[name])
            ratio = medians["qwen3q"] / median
            print(f"  {name:<28}{median:8.2f} tokens/s ({low:.2f} to {high:.2f}){ratio:7.3f}")
        report.append({"file": file.name, "threads": arguments.threads, "rates": rates})
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": report}, indent=1))


if __name__ == "__main__":
    main()
