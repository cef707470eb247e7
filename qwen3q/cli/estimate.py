"""``qwen3q estimate``: does it fit, where every MiB goes, and how fast it will be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qwen3q.cli.estimate_options import (
    EngineOption,
    GpuOption,
    KvOption,
    ParallelOption,
    VramOption,
    choose_gpus,
    cpu_experts_of,
    engine_with,
    parse_engine,
    parse_format,
    tokens_of,
)
from qwen3q.cli.output import JsonFlag, print_json
from qwen3q.errors import UsageError

if TYPE_CHECKING:
    from qwen3q.memory.estimate import Estimate
    from qwen3q.memory.gpus import Gpu
    from qwen3q.memory.settings import Engine, Settings
    from qwen3q.memory.source import Model


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)


def estimate(
    model: Annotated[
        str,
        typer.Argument(
            help="Alias, Hub id, folder, MODEL:TYPE, .gguf, or .safetensors beside config.json."
        ),
    ],
    quant: Annotated[
        str | None, typer.Option("--quant", help="Such as gguf:Q4_K_M or awq:int4; all if absent.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Tokens of one sequence, such as 32768 or 32k.")
    ] = None,
    gpu: GpuOption = None,
    vram: VramOption = None,
    engine: EngineOption = None,
    kv: KvOption = None,
    gpu_layers: Annotated[
        int | None,
        typer.Option("--gpu-layers", min=0, help="Layers on GPUs, the output counted (-ngl)."),
    ] = None,
    offload_experts: Annotated[
        str | None,
        typer.Option("--offload-experts", help="Layers whose experts stay on the CPU, or all."),
    ] = None,
    parallel: ParallelOption = 1,
    ubatch: Annotated[
        int | None,
        typer.Option(
            "--ubatch", min=1, help="Tokens of one pass (llama.cpp's -ub), 512 if absent."
        ),
    ] = None,
    no_flash_attn: Annotated[
        bool, typer.Option("--no-flash-attn", help="Without flash attention.")
    ] = False,
    yarn: Annotated[
        float | None, typer.Option("--yarn", help="YaRN factor, for a longer context.")
    ] = None,
    utilization: Annotated[
        float | None,
        typer.Option(
            "--gpu-memory-utilization", help="Share of a GPU that vLLM takes, 0.9 if absent."
        ),
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Memory and speed of a model before it is downloaded: per device, in the loader's names."""
    from qwen3q.memory.settings import DEFAULT_UBATCH, DEFAULT_UTILIZATION, Settings
    from qwen3q.memory.source import find_model, split_format

    if quant is None:
        model, quant = split_format(model)
    found = find_model(model)
    gpus, notes = choose_gpus(gpu, vram)
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise UsageError(
            f"--gpu-memory-utilization {utilization:g} is no share of a GPU.",
            "Give more than 0 and at most 1; vLLM's own is 0.9.",
        )
    wanted = found.stored.format if found.stored is not None else None
    if quant is not None:
        wanted = parse_format(quant)
    given = {
        "--gpu-layers": gpu_layers, "--offload-experts": offload_experts, "--ubatch": ubatch,
        "--no-flash-attn": no_flash_attn or None, "--gpu-memory-utilization": utilization,
    }  # fmt: skip
    runner = engine_with(
        [option for option, value in given.items() if value is not None],
        wanted, parse_engine(engine),
    )  # fmt: skip
    settings = Settings(
        context=tokens_of(context, found),
        parallel=parallel,
        ubatch=DEFAULT_UBATCH if ubatch is None else ubatch,
        flash_attention=not no_flash_attn,
        gpu_layers=gpu_layers,
        cpu_experts=cpu_experts_of(offload_experts, found),
        yarn=yarn,
        utilization=DEFAULT_UTILIZATION if utilization is None else utilization,
    )
    if wanted is not None:
        _one(found, wanted, settings, gpus, notes, kv, runner, json_output)
    else:
        _table(found, settings, gpus, notes, kv, runner, context is not None, json_output)


def _one(
    model: Model,
    fmt: str,
    settings: Settings,
    gpus: list[Gpu],
    notes: list[str],
    kv: str | None,
    engine: Engine | None,
    json_output: bool,
) -> None:
    from qwen3q.memory.advice import advise
    from qwen3q.memory.tables import model_table

    def run(on: list[Gpu]) -> list[Estimate]:
        rows = model_table(
            model, [fmt], [settings.context], settings, on, kv=kv, engine=engine,
            find_max_context=True,
        )  # fmt: skip
        return list(rows[0].estimates)

    [found] = run(gpus)
    advice = advise(model, found, gpus)
    if json_output:
        from qwen3q.memory.gpus import gpus as catalog
        from qwen3q.memory.schema import estimate_json, gpus_json

        print_json(
            {
                "estimates": [estimate_json(found, advice)],
                "gpus": gpus_json(model.config, run([]), catalog()),
                "notes": notes,
            }
        )
        return
    from qwen3q.cli.estimate_text import show_estimate

    show_estimate(model, found, advice, notes)


def _table(
    model: Model,
    settings: Settings,
    gpus: list[Gpu],
    notes: list[str],
    kv: str | None,
    engine: Engine | None,
    one_context: bool,
    json_output: bool,
) -> None:
    from qwen3q.memory.tables import CONTEXTS, model_table

    contexts = [settings.context] if one_context else list(CONTEXTS)
    rows = model_table(
        model, model.formats(), contexts, settings, gpus, kv=kv, engine=engine,
        find_max_context=bool(gpus),
    )  # fmt: skip
    if json_output:
        from qwen3q.memory.gpus import gpus as catalog
        from qwen3q.memory.schema import estimate_json, gpus_json

        anywhere = rows if not gpus else model_table(
            model, model.formats(), contexts, settings, [], kv=kv, engine=engine
        )  # fmt: skip
        runs = [run for row in anywhere for run in row.estimates]
        print_json(
            {
                "estimates": [estimate_json(run) for row in rows for run in row.estimates],
                "gpus": gpus_json(model.config, runs, catalog()),
                "notes": notes,
            }
        )
        return
    from qwen3q.cli.estimate_text import show_table

    show_table(model, rows, gpus, notes)
