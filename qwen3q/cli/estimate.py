"""``qwen3q estimate``: does it fit, where every MiB goes, and how fast it will be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

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
    is_here,
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
    from qwen3q.memory.tables import Row


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
    from qwen3q.memory.processor import decode_bandwidth
    from qwen3q.memory.settings import (
        DEFAULT_UBATCH,
        DEFAULT_UTILIZATION,
        HOST_BANDWIDTH,
        Settings,
    )
    from qwen3q.memory.source import find_model, split_format
    from qwen3q.memory.tables import CONTEXTS

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
    cpu_experts = cpu_experts_of(offload_experts, found)
    host_bandwidth = HOST_BANDWIDTH
    if is_here(gpu) and (cpu_experts or gpu_layers is not None):
        host_bandwidth, measured = decode_bandwidth()
        notes.append(measured)
    settings = Settings(
        context=tokens_of(context, found),
        parallel=parallel,
        ubatch=DEFAULT_UBATCH if ubatch is None else ubatch,
        flash_attention=not no_flash_attn,
        gpu_layers=gpu_layers,
        cpu_experts=cpu_experts,
        yarn=yarn,
        utilization=DEFAULT_UTILIZATION if utilization is None else utilization,
        host_bandwidth=host_bandwidth,
    )
    asked = _Asked(found, settings, kv, runner, gpus)
    if wanted is not None:
        _one(asked, wanted, notes, json_output)
    else:
        contexts = list(CONTEXTS) if context is None else [settings.context]
        _table(asked, contexts, notes, json_output)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options say.

    Attributes:
        kv: cache type; each engine's default if None.
        engine: None for each format's own.
        gpus: empty for one of unknown size.
    """

    model: Model
    settings: Settings
    kv: str | None
    engine: Engine | None
    gpus: list[Gpu]

    def rows(
        self, formats: list[str], contexts: list[int], on: list[Gpu], *, find_max_context: bool
    ) -> list[Row]:
        """The estimates, on ``gpus`` or others."""
        from qwen3q.memory.tables import model_table

        return model_table(
            self.model, formats, contexts, self.settings, on, kv=self.kv, engine=self.engine,
            find_max_context=find_max_context,
        )  # fmt: skip


def _one(asked: _Asked, fmt: str, notes: list[str], json_output: bool) -> None:
    from qwen3q.memory.advice import advise

    def run(on: list[Gpu]) -> Estimate:
        [row] = asked.rows([fmt], [asked.settings.context], on, find_max_context=True)
        [found] = row.estimates
        return found

    found = run(asked.gpus)
    advice = advise(asked.model, found, asked.gpus)
    if json_output:
        from qwen3q.memory.schema import estimate_json

        _print_json(asked, [estimate_json(found, advice)], [run([])], notes)
        return
    from qwen3q.cli.estimate_text import show_estimate

    show_estimate(asked.model, found, advice, notes)


def _table(asked: _Asked, contexts: list[int], notes: list[str], json_output: bool) -> None:
    formats, gpus = asked.model.formats(), asked.gpus
    rows = asked.rows(formats, contexts, gpus, find_max_context=bool(gpus))
    if json_output:
        from qwen3q.memory.schema import estimate_json

        anywhere = asked.rows(formats, contexts, [], find_max_context=False) if gpus else rows
        estimates = [estimate_json(run) for row in rows for run in row.estimates]
        _print_json(asked, estimates, [run for row in anywhere for run in row.estimates], notes)
        return
    from qwen3q.cli.estimate_text import show_table

    show_table(asked.model, rows, gpus, notes)


def _print_json(
    asked: _Asked, estimates: list[dict[str, Any]], anywhere: list[Estimate], notes: list[str]
) -> None:
    """
    Args:
        anywhere: the same runs on a GPU of unknown size, to hold against every GPU there is.
    """
    from qwen3q.memory.gpus import gpus as catalog
    from qwen3q.memory.schema import gpus_json

    gpus = gpus_json(asked.model.config, anywhere, catalog())
    print_json({"estimates": estimates, "gpus": gpus, "notes": notes})
