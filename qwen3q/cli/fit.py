"""``qwen3q fit``: which Qwen3, in which quantization, is the best that these GPUs hold."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3q.cli.estimate import (
    EngineOption,
    GpuOption,
    KvOption,
    ParallelOption,
    VramOption,
    choose_gpus,
    parse_context,
    parse_engine,
)
from qwen3q.cli.output import JsonFlag, print_json
from qwen3q.errors import UsageError

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
    """Every model and quantization that fits, best expected quality first, with its command."""
    from qwen3q.memory.fit import fitting
    from qwen3q.memory.settings import Settings

    gpus, notes = choose_gpus(gpu, vram)
    if not gpus:
        raise UsageError(
            "fit needs a GPU.", 'Name one, as in --gpu "RTX 3060 12GB", or give --vram 12GiB.'
        )
    settings = Settings(context=parse_context(context), parallel=parallel)
    found = fitting(gpus, settings, kv=kv, engine=parse_engine(engine), min_speed=min_speed)
    if not found:
        fast = "" if min_speed is None else f" at {min_speed:g} tokens/s"
        raise UsageError(
            f"No Qwen3 fits {' + '.join(g.name for g in gpus)} with {settings.context:,} tokens"
            f"{fast}.",
            "Try a shorter --context, --kv q8_0, or a lower --min-speed.",
        )
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
