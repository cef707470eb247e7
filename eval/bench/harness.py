"""lm-evaluation-harness over our backends, question by question beside its own transformers model.

    python -m eval.bench.harness TASK.yaml... --model FOLDER [--gguf FILE] --limit 60 --threads 1

TASK.yaml are task files of the harness, such as its own gsm8k and mmlu with ``dataset_path: json``
and the questions' files, where the Hub can't be reached. Answers and scores are compared, and the
seconds printed beside each other. All models run in one process, one after another.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.timing import machine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one model said: per task and question the raw answers, and the tasks' figures."""

    answers: dict[tuple[str, int], Any]
    figures: dict[str, float]
    seconds: float


def run(model: Any, tasks: list[Path], limit: int) -> Outcome:
    """All questions to a model of the harness's kind."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    started = time.perf_counter()
    found = simple_evaluate(
        model=model,
        tasks=[str(task) for task in tasks],
        limit=limit,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    seconds = time.perf_counter() - started
    answers = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            # of likelihoods only the order counts: sums in another order differ in the last digits
            metrics = {name: sample[name] for name in sample["metrics"]}
            said = sample["resps"] if "exact_match" in metrics else metrics
            answers[task, sample["doc_id"]] = said
    figures = {
        f"{task} {key.partition(',')[0]} ({key.partition(',')[2]})": float(value)
        for task, metrics in found["results"].items()
        for key, value in metrics.items()
        if "," in key and "stderr" not in key
    }
    return Outcome(answers, figures, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    import torch
    from lm_eval.models.huggingface import HFLM

    from qwen3q.evaluate.artefact import find_artefact
    from qwen3q.evaluate.backends import BackendOptions, open_backend
    from qwen3q.evaluate.lm_eval_adapter import BackendLM
    from qwen3q.evaluate.tokens import open_codec

    torch.set_num_threads(arguments.threads)
    context = open_codec(find_artefact(str(arguments.model))).trained_context
    peer = HFLM(
        pretrained=str(arguments.model),
        dtype="float32",
        device="cpu",
        batch_size=1,
        max_length=context,
    )
    theirs = run(peer, arguments.tasks, arguments.limit)
    print(f"{machine()}; {arguments.threads} threads; {len(theirs.answers)} questions")
    print(f"lm-evaluation-harness's hf: {theirs.seconds:.1f} s, {theirs.figures}")
    for path in filter(None, (arguments.model, arguments.gguf)):
        artefact = find_artefact(str(path))
        options = BackendOptions(threads=arguments.threads, device="cpu")
        with open_backend(artefact, options, context + 1) as backend:
            model = BackendLM(backend, open_codec(artefact), context)
            ours = run(model, arguments.tasks, arguments.limit)
        same = sum(ours.answers[key] == answer for key, answer in theirs.answers.items())
        print(
            f"qwen3q, {artefact.format}: {ours.seconds:.1f} s "
            f"({theirs.seconds / ours.seconds:.2f}x), {ours.figures}; "
            f"{same} of {len(theirs.answers)} questions the same"
        )


if __name__ == "__main__":
    main()
