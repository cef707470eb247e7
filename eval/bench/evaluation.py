"""Measuring fidelity: qwen3q's evaluation against llama-perplexity and a plain transformers loop.

    python -m eval.bench.evaluation FOLDER --gguf FILE --reference FILE --text FILE --bin BIN

Every figure is a whole process's, from its start, on as many cores as threads: llama-perplexity
compares logits on every core it may use, whatever it is told. It makes its base logits once,
outside the timing, as the stored reference of qwen3q is made once. transformers runs the folder
row by row in float32 and takes the log-likelihood of the scored tokens; qwen3q runs the same rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from eval.bench.timing import Run, in_turn, machine, run
from qwen3q.threads import calm_openmp, default_threads

CONTEXT = 512


def plain_loop(folder: Path, text: Path, chunks: int, threads: int) -> float:
    """Perplexity of the second half of each row, as a short script would compute it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer(text.read_text("utf-8"), return_tensors="pt").input_ids[0]
    total, count = 0.0, 0
    for start in range(0, chunks * CONTEXT, CONTEXT):
        row = tokens[start : start + CONTEXT][None]
        with torch.inference_mode():
            scores = model(row).logits[0].log_softmax(-1)
        wanted = row[0, CONTEXT // 2 + 1 :]
        picked = scores[CONTEXT // 2 : -1].gather(1, wanted[:, None])
        total, count = total - float(picked.sum()), count + len(wanted)
    return float(torch.tensor(total / count).exp())


def our_loop(folder: Path, text: Path, chunks: int, threads: int) -> float:
    """The same figure from qwen3q's torch backend."""
    import torch

    from qwen3q.evaluate.artefact import find_artefact
    from qwen3q.evaluate.backends import BackendOptions
    from qwen3q.evaluate.tokens import open_codec
    from qwen3q.evaluate.torch_backend import TorchBackend
    from qwen3q.evaluate.windows import text_chunks

    artefact = find_artefact(str(folder))
    codec = open_codec(artefact)
    rows = text_chunks(text.read_text("utf-8"), codec, CONTEXT, chunks, parse_special=False)
    wanted = torch.from_numpy(rows[:, CONTEXT // 2 + 1 :].reshape(-1).astype("int64"))
    total = 0.0
    with TorchBackend(artefact, BackendOptions(threads=threads)) as backend:
        for start, values in backend.logits(rows, CONTEXT // 2):
            scores = torch.from_numpy(values).log_softmax(-1)
            picked = scores.gather(1, wanted[start : start + len(values), None])
            total -= float(picked.sum())
    return float(torch.tensor(total / len(wanted)).exp())


def _print(what: str, runs: dict[str, tuple[float, int]]) -> None:
    print(f"\n{what}")
    ours = runs["qwen3q"]
    for name, (seconds, peak) in runs.items():
        print(
            f"  {name:<18}{seconds:8.1f} s{peak / 1e6:9.0f} MB"
            f"{seconds / ours[0]:8.2f}x time{ours[1] / peak:8.2f} of its memory"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="float model for the torch part")
    parser.add_argument("--gguf", type=Path, required=True, help="quantized file")
    parser.add_argument("--reference", type=Path, required=True, help="float or 8-bit file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--bin", type=Path, required=True, help="folder of llama-perplexity")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loop", choices=("plain", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    text, chunks, threads = arguments.text, arguments.chunks, arguments.threads
    if arguments.loop:
        loop = plain_loop if arguments.loop == "plain" else our_loop
        print(loop(arguments.folder, text, chunks, threads))
        return
    calm_openmp()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    print(f"{machine()}; {threads} threads; medians of {arguments.repeats}; {chunks} x {CONTEXT}")
    common = ["-f", str(text), "-c", str(CONTEXT), "--chunks", str(chunks), "-t", str(threads)]
    common += ["--no-repack"] if _repack_fails() else []
    theirs = [str(arguments.bin / "llama-perplexity"), *common]
    ours = [sys.executable, "-m", "qwen3q", "eval"]
    limits = ["--max-chunks", str(chunks), "--threads", str(threads), "--json"]

    def itself(loop: str) -> Run:
        return run([sys.executable, "-m", "eval.bench.evaluation", *sys.argv[1:], "--loop", loop])

    with tempfile.TemporaryDirectory() as scratch:
        base, out = Path(scratch) / "base.logits", Path(scratch) / "run"
        run([*theirs, "-m", str(arguments.reference), "--kl-divergence-base", str(base)])
        measure = [*ours, str(arguments.gguf), "--reference", str(arguments.reference)]
        measure += ["--text", str(text), "--out", str(out), *limits]
        run(measure)
        divergence = [*theirs, "-m", str(arguments.gguf), "--kl-divergence"]
        divergence += ["--kl-divergence-base", str(base)]
        contestants = {
            "qwen3q": lambda: run(measure),
            "llama-perplexity": lambda: run(divergence),
        }
        _print(f"divergence of {arguments.gguf.name}", in_turn(contestants, arguments.repeats))
    perplexity = [*ours, "perplexity", str(arguments.gguf), "--text", str(text)]
    perplexity += ["--max-chunks", str(chunks), "--threads", str(threads), "--json"]
    contestants = {
        "qwen3q": lambda: run(perplexity),
        "llama-perplexity": lambda: run([*theirs, "-m", str(arguments.gguf)]),
    }
    _print(f"perplexity of {arguments.gguf.name}", in_turn(contestants, arguments.repeats))
    contestants = {"qwen3q": lambda: itself("ours"), "transformers": lambda: itself("plain")}
    _print(f"torch, {arguments.folder.name}", in_turn(contestants, arguments.repeats))


def _repack_fails() -> bool:
    """Whether qwen3q loads models without repacked weights here, which the peer then does too."""
    from qwen3q.llama.capi import has_amx

    return has_amx()


if __name__ == "__main__":
    main()
