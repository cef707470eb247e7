"""``qwen3q fit``: which Qwen3, in which quantization, is the best that this memory holds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3q.cli.estimate_options import (
    EngineOption,
    GpuOption,
    KvOption,
    ParallelOption,
    VramOption,
    choose_gpus,
    parse_context,
    parse_engine,
    this_machine,
)
from qwen3q.cli.output import JsonFlag, print_json
from qwen3q.errors import Qwen3qError, UsageError

if TYPE_CHECKING:
    from qwen3q.memory.estimate import Estimate
    from qwen3q.memory.gpus import Gpu
    from qwen3q.memory.settings import Engine, Settings

SHOWN = 20


def register(app: typer.Typer) -> None:
    app.command("fit")(fit)


def fit(
    gpu: GpuOption = None,
    vram: VramOption = None,
    context: Annotated[
        str, typer.Option("--context", help="Tokens of one sequence, such as 16384 or 16k.")
    ] = "8192",
    min_speed: Annotated[
        float | None,
        typer.Option("--min-speed", help="Tokens per second at that context, at least."),
    ] = None,
    engine: EngineOption = None,
    kv: KvOption = None,
    parallel: ParallelOption = 1,
    every: Annotated[bool, typer.Option("--all", help="All that fits, not the best 20.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Every model and quantization that fits, best expected quality first, with its command.

    Without --gpu and --vram it is about this machine: its GPUs, or its processor and RAM.
    """
    from qwen3q.memory.fit import fitting, possible_runs
    from qwen3q.memory.settings import Settings

    gpus, notes = choose_gpus(gpu, vram) if gpu or vram else this_machine()
    _check_speed(min_speed, gpus)
    settings = Settings(context=_reachable(context), parallel=parallel)
    runner = parse_engine(engine)
    runs = possible_runs(gpus, settings, kv=kv, engine=runner)
    found = fitting(runs, min_speed=min_speed)
    if not found:
        least = min((run for _, run in runs), key=lambda run: run.total)
        raise _nothing_fits(least, gpus, settings, kv, runner, min_speed)
    if json_output:
        from qwen3q.memory.schema import fit_json, gpu_json

        print_json(
            {
                "estimates": [fit_json(choice) for choice in found],
                "gpus": [gpu_json(part) for part in gpus],
                "notes": notes,
            }
        )
        return
    from qwen3q.cli.estimate_text import show_fits

    show_fits(found if every else found[:SHOWN], len(found), gpus, settings, notes)


def _check_speed(wanted: float | None, gpus: list[Gpu]) -> None:
    """Refuses a speed that is none, or that no GPU here can be held against."""
    from qwen3q.memory.speed import is_predictable

    if wanted is None:
        return
    if not 0.0 < wanted < math.inf:
        raise UsageError(
            f"--min-speed {wanted:g} is no speed.", "Give tokens per second, such as 10."
        )
    unknown = [gpu.name for gpu in gpus if not is_predictable(gpu)]
    if unknown:
        raise UsageError(
            f"--min-speed {wanted:g} can't be checked: the speed of a {unknown[0]} is unknown.",
            'Name the card too, as in --gpu "RTX 4090" --vram 20GiB, or leave --min-speed out.',
        )


def _reachable(context: str) -> int:
    """Tokens of ``--context``, which some Qwen3 must reach."""
    from qwen3q.memory.settings import longest_context
    from qwen3q.models.catalog import catalog

    tokens = parse_context(context)
    longest = max(longest_context(release.config) for release in catalog())
    if tokens > longest:
        raise UsageError(
            f"--context {context} is more than any Qwen3 reaches.",
            f"The longest is --context {longest}.",
        )
    return tokens


def _nothing_fits(
    least: Estimate,
    gpus: list[Gpu],
    settings: Settings,
    kv: str | None,
    engine: Engine | None,
    min_speed: float | None,
) -> Qwen3qError:
    """What was asked for, what the smallest choice, ``least``, takes, and what to change."""
    from qwen3q.cli.estimate_text import GIB, gpu_names
    from qwen3q.memory.estimate import Verdict
    from qwen3q.memory.settings import Engine

    takes = ""
    if least.verdict is Verdict.NO:
        takes = (
            f"The smallest, {least.model} in {least.weights.format}, takes "
            f"{least.total / GIB:.2f} GiB. "
        )
    changes = ["a shorter --context"]
    if kv is None and engine is not Engine.TRANSFORMERS:
        changes.append("--kv fp8" if engine is Engine.VLLM else "--kv q8_0")
    changes += ["a smaller --parallel"] * (settings.parallel > 1)
    changes += ["a lower --min-speed"] * (min_speed is not None)
    *others, last = changes
    fast = "" if min_speed is None else f" at {min_speed:g} tokens/s"
    return Qwen3qError(
        f"No Qwen3 fits {gpu_names(gpus)} with {settings.context:,} tokens{fast}.",
        f"{takes}Try {', '.join(others) + ' or ' if others else ''}{last}.",
    )
