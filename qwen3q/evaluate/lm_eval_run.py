"""Tasks of lm-evaluation-harness over a reference and its artefacts, as rows for the report."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import isclose, isfinite, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3q.errors import (
    MissingPackageError,
    Qwen3qError,
    SourceError,
    UsageError,
    memory_error,
)
from qwen3q.evaluate.answers import Answers
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.endpoint_backend import no_scores, require_generation
from qwen3q.evaluate.endpoint_http import EndpointError
from qwen3q.evaluate.resume import Kept
from qwen3q.evaluate.tokens import open_codec
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from qwen3q.evaluate.lm_eval_adapter import KeptAnswersFn

LONGEST = 4096
"""Tokens that a task's question and answer may have; less where the model was trained on less."""

_HARNESS_SEED = 1234
_GENERATING = "generate_until"
"""Tasks of other kinds are scored by the log-likelihood of given texts."""
_LOGGERS = ("lm_eval", "datasets", "evaluate", "huggingface_hub")


@dataclass(frozen=True, slots=True)
class HarnessOptions:
    """What is asked.

    Attributes:
        tasks: names of the harness's tasks, groups or tags, or YAML files of one's own.
        limit: questions per task; None for all.
        fewshot: solved examples before each question; None for the task's own number.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    fewshot: int | None = None


def load_tasks(options: HarnessOptions, artefacts: Sequence[Artefact] = ()) -> TaskManager:
    """The harness's tasks; all that are asked for are there, and so is their data.

    Args:
        artefacts: what they are to be asked of.

    Raises:
        MissingPackageError: lm-evaluation-harness is not installed.
        UsageError: a task is unknown or can't be run.
        SourceError: a task's data set can't be had.
        EndpointError: an endpoint can't be asked a task's kind of questions.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingPackageError(
            "--tasks needs lm-evaluation-harness.", "pip install 'qwen3q[tasks]'"
        ) from None
    with _quiet_harness():
        # to read all of the harness's own tasks takes seconds
        own = not all(map(_stands_alone, options.tasks))
        manager = TaskManager(include_defaults=own)
        for name in options.tasks:
            if name not in manager.task_index and not Path(name).is_file():
                raise UsageError(
                    f"lm-evaluation-harness has no task {name!r}.", "lm_eval ls tasks lists them."
                )
        with _explained(options.tasks):
            loaded = manager.load(list(options.tasks))
    for artefact in artefacts:
        for name, task in loaded["tasks"].items():
            _require_answers(artefact, name, task.OUTPUT_TYPE)
    return manager


def _require_answers(artefact: Artefact, task: str, kind: str) -> None:
    """Refuses an endpoint that can't be asked a task's kind of questions."""
    if kind == _GENERATING:
        require_generation(artefact)
    elif artefact.endpoint is not None and artefact.endpoint.scorer is None:
        raise EndpointError(
            f"{artefact.name}: {no_scores(artefact.endpoint)}, which {task} needs.",
            "Leave that task out, or run it on the model's folder or GGUF file.",
        )


def _stands_alone(name: str) -> bool:
    """Whether a task is a file that names no other tasks.

    Raises:
        UsageError: it is a file of something else.
    """
    path = Path(name)
    if not path.is_file():
        return False
    try:
        return not re.search(r"(?m)^group\s*:", path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise UsageError(
            f"{name} is no task: it is not text.", "A task is a YAML file, or a name."
        ) from None


def run_tasks(
    reference: Artefact,
    artefacts: Sequence[Artefact],
    options: HarnessOptions,
    manager: TaskManager,
    backend: BackendOptions,
    progress: ProgressFn = silent,
    *,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Rows of ``report.json``'s ``tasks``, the reference's first.

    Args:
        kept: what earlier calls measured, and where this one's figures are kept.

    Raises:
        UsageError: a task can't be run.
        Qwen3qError: a model can't be run.
    """
    rows: list[dict[str, Any]] = []
    base: Mapping[str, Any] | None = None
    kept = kept or Kept(None)
    for artefact in (reference, *artefacts):

        def report(done: int, total: int, what: str, name: str = artefact.name) -> None:
            progress(done, total, f"{name}: {what}")

        settings = (options, replace(backend, threads=None))
        with ExitStack() as until_kept:

            def answers(
                asked: object,
                artefact: Artefact = artefact,
                settings: object = settings,
                until_kept: ExitStack = until_kept,
            ) -> Answers:
                return until_kept.enter_context(kept.answers(artefact, "tasks", (settings, asked)))

            results = kept.get(
                artefact,
                "tasks",
                settings,
                partial(_evaluate, artefact, options, manager, backend, answers, report),
            )
        rows += _rows(artefact, results, base)
        base = base or results
    return rows


def _evaluate(
    artefact: Artefact,
    options: HarnessOptions,
    manager: TaskManager,
    backend: BackendOptions,
    answers: KeptAnswersFn,
    progress: ProgressFn,
) -> dict[str, Any]:
    """The harness's results of one model, and what each question scored; plain data."""
    from lm_eval.evaluator import evaluate

    from qwen3q.evaluate.lm_eval_adapter import BackendLM

    codec = open_codec(artefact)
    context = min(LONGEST, codec.trained_context)
    if artefact.endpoint is not None and artefact.endpoint.context is not None:
        context = min(context, artefact.endpoint.context - 1)
    with (
        open_backend(artefact, backend, context + 1) as model,
        _quiet_harness(),
        _explained(options.tasks),
    ):
        lm = BackendLM(model, codec, context, progress, answers)
        results = evaluate(lm, _prepared(options, manager), limit=options.limit)
    parts = ("higher_is_better", "n-shot", "versions", "n-samples")
    return {
        "figures": {**results["results"], **results.get("groups", {})},
        "answers": {task: _answers(rows) for task, rows in results["samples"].items()},
        **{part: results[part] for part in parts},
    }


def _prepared(options: HarnessOptions, manager: TaskManager) -> Any:
    """Tasks with seeds and examples as ``lm_eval.simple_evaluate`` sets them."""
    random.seed(0)
    np.random.seed(_HARNESS_SEED)
    loaded = manager.load(list(options.tasks))
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        # a task that is defined without examples stays so
        if own is None or (options.fewshot is not None and own != 0):
            task.set_config("num_fewshot", options.fewshot or 0)
        task.set_fewshot_seed(_HARNESS_SEED)
    return loaded


def _answers(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What each question scored, by metric and filter, for metrics of single questions."""
    out: dict[str, dict[str, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], int | float):
                of_metric = out.setdefault(f"{metric},{sample['filter']}", {})
                of_metric[str(sample["doc_id"])] = float(sample[metric])
    return out


@contextmanager
def _explained(tasks: Sequence[str]) -> Iterator[None]:
    """One sentence in place of what tasks, data sets and metrics raise; full memory is told as
    such."""
    names = ", ".join(tasks)
    try:
        yield
    except Qwen3qError:
        raise
    except OSError as error:  # ConnectionError and FileNotFoundError among them
        raise SourceError(
            f"The data of {names} can't be had: {_first_line(error)}.",
            "Check the network and HF_ENDPOINT; what was downloaded before serves offline.",
        ) from None
    except Exception as error:
        full = memory_error(error)
        if full is not None:
            raise full from None
        raise UsageError(
            f"lm-evaluation-harness can't run {names}: {_first_line(error)}."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _rows(
    artefact: Artefact, results: Mapping[str, Any], base: Mapping[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """One row per task and metric; with the change against ``base``, question by question."""
    for task, figures in results["figures"].items():
        for key, value in figures.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            row = {
                "run": 0,
                "artefact": artefact.name,
                "format": artefact.format,
                "file_bytes": artefact.file_bytes,
                "task": task,
                "metric": metric,
                "filter": kind,
                "value": float(value),
                "stderr": _number(figures.get(f"{metric}_stderr,{kind}")),
                "higher_is_better": results["higher_is_better"].get(task, {}).get(metric),
                "fewshot": results["n-shot"].get(task),
                "version": results["versions"].get(task),
                "questions": results["n-samples"].get(task, {}).get("effective"),
            }
            if base is not None:
                before, after = (
                    side["answers"].get(task, {}).get(key, {}) for side in (base, results)
                )
                # a figure that is no mean of its questions has no change by pairs
                if after and isclose(sum(after.values()) / len(after), value, abs_tol=1e-9):
                    row |= _change(before, after)
            yield row


def _change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The mean change and its standard error, from pairs."""
    if len(before) < 2 or before.keys() != after.keys():
        return {}
    changes = [after[question] - before[question] for question in before]
    mean = sum(changes) / len(changes)
    variance = sum((change - mean) ** 2 for change in changes) / (len(changes) - 1)
    return {"change": mean, "change_stderr": sqrt(variance / len(changes))}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Keeps the harness and ``datasets`` from logging and drawing bars; their errors still come."""
    import datasets
    import lm_eval.api.task as task_module

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    drew, bar = datasets.are_progress_bars_disabled(), task_module.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task_module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        task_module.tqdm = bar
        if not drew:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
