"""Tasks of lm-evaluation-harness in ``qwen3q eval``: what is asked, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwen3q.cli.narrow_tables import show_tables

if TYPE_CHECKING:
    from qwen3q.evaluate.lm_eval_run import HarnessOptions


def harness_options(
    names: str | None, limit: int | None, fewshot: int | None
) -> HarnessOptions | None:
    """What ``--tasks`` and its options ask for; None if they were not given.

    Raises:
        UsageError: options without tasks.
    """
    from qwen3q.errors import UsageError
    from qwen3q.evaluate.lm_eval_run import HarnessOptions

    tasks = tuple(name.strip() for name in (names or "").split(",") if name.strip())
    if tasks:
        return HarnessOptions(tasks, limit, fewshot)
    given = {"--task-limit": limit, "--task-fewshot": fewshot, "--tasks": names}
    for option, value in given.items():
        if value is not None:
            raise UsageError(
                f"{option} is empty." if value == "" else f"{option} {value} names no task.",
                "Give --tasks gsm8k,mmlu, for example.",
            )
    return None


def show_tasks(report: Mapping[str, Any]) -> None:
    """Float model and artefacts under each other, if tasks were run."""
    from qwen3q.evaluate.lm_eval_tables import tasks_table

    table = tasks_table(report)
    if table is not None:
        show_tables([("Tasks of lm-evaluation-harness", table)])
