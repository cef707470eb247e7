"""``qwen3q eval``: what a quantization cost, measured. One sub-command per kind of measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from qwen3q.cli.eval_endpoint import endpoint
from qwen3q.cli.eval_fidelity import fidelity
from qwen3q.cli.eval_speed import speed
from qwen3q.cli.narrow_tables import show_tables
from qwen3q.cli.options import GpuLayersOption, OfflineFlag, ThreadsOption
from qwen3q.cli.output import (
    JsonFlag,
    format_bytes,
    print_json,
    progress_bar,
    stdout_console,
)
from qwen3q.counts import counted

if TYPE_CHECKING:
    from qwen3q.evaluate.perplexity import PerplexityResult


def register(app: typer.Typer) -> None:
    group = typer.Typer(cls=_FidelityByDefault, no_args_is_help=True)
    group.callback()(_group)
    group.command("fidelity")(fidelity)
    group.command("endpoint")(endpoint)
    group.command("perplexity")(perplexity)
    group.command("speed")(speed)
    app.add_typer(group, name="eval")


class _FidelityByDefault(TyperGroup):
    """``eval ARTEFACT...`` is ``eval fidelity ARTEFACT...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["fidelity", *args]
        return super().parse_args(ctx, args)


def _group() -> None:
    """Measure what a quantization cost.

    `qwen3q eval ARTEFACT... --reference MODEL` is short for `qwen3q eval fidelity ARTEFACT...`.
    """


def perplexity(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="GGUF files, MODEL:TYPE such as qwen3-8b:Q4_K_M, or demo."
        ),
    ],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to measure on. Default: the built-in text.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens per chunk.")] = 512,
    scored: Annotated[
        str, typer.Option(help="half or full: which positions of a chunk count.")
    ] = "half",
    max_chunks: Annotated[int | None, typer.Option(min=1, help="Default: all of the text.")] = None,
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special",
            help="Read <|im_start|> and the like as tokens; always so in the built-in text.",
        ),
    ] = False,
    cache_type: Annotated[str, typer.Option(help="How the KV cache is stored.")] = "f16",
    gpu_layers: GpuLayersOption = -1,
    threads: ThreadsOption = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Perplexity on a text, as llama-perplexity computes it, of one or more models."""
    from qwen3q.data.texts import evaluation_text
    from qwen3q.errors import UsageError
    from qwen3q.evaluate.chunks import Scored, read_as_llama
    from qwen3q.evaluate.perplexity import measure_perplexity
    from qwen3q.llama.model import LlamaModel, LoadOptions
    from qwen3q.quantize.local_gguf import local_gguf

    if scored not in list(Scored):
        raise UsageError(f"--scored {scored} is unknown.", f"Known: {', '.join(Scored)}.")
    content = evaluation_text() if text is None else read_as_llama(text)
    for name in models:
        _require_no_folder(name)
    with progress_bar(quiet=json_output) as progress:
        paths = [local_gguf(name, offline=offline, progress=progress) for name in models]
    results = []
    for path in paths:
        with (
            progress_bar(quiet=json_output) as progress,
            LlamaModel(path, LoadOptions(gpu_layers=gpu_layers)) as model,
        ):
            result = measure_perplexity(
                model,
                content,
                context=context,
                scored=Scored(scored),
                max_chunks=max_chunks,
                parse_special=parse_special or text is None,
                threads=threads,
                key_type=cache_type,
                value_type=cache_type,
                progress=progress,
            )
        results.append(result)
    if json_output:
        print_json(
            {"text": str(text or "built-in"), "results": [perplexity_json(r) for r in results]}
        )
        return
    _show(results)


def _require_no_folder(name: str) -> None:
    """Refuses a model folder, which llama.cpp does not run, and names what measures it."""
    from qwen3q.errors import UsageError
    from qwen3q.models.source import DEMO

    if name != DEMO and Path(name).expanduser().is_dir():
        raise UsageError(
            f"{name} is a folder, and this measures GGUF files in llama.cpp.",
            f"`qwen3q eval {name} --reference MODEL` measures folders; of a float model, "
            f"{name}:Q8_0 is quantized first.",
        )


def perplexity_json(result: PerplexityResult) -> dict[str, Any]:
    """One measurement for scripts, with everything it depends on."""
    return {
        "file": str(result.file),
        "file_bytes": result.file.stat().st_size,
        "perplexity": result.perplexity,
        "stderr": result.stderr,
        "nll": result.nll,
        "tokens": result.tokens,
        "chunks": result.chunks,
        "context": result.context,
        "scored": result.scored.value,
        "add_bos": result.add_bos,
        "parse_special": result.parse_special,
        "key_type": result.key_type,
        "value_type": result.value_type,
        "seconds": round(result.seconds, 3),
    }


def _show(results: list[PerplexityResult]) -> None:
    from qwen3q.evaluate.tables import Table

    rows = tuple(
        (
            result.file.name,
            format_bytes(result.file.stat().st_size),
            f"{result.perplexity:.4f} ± {result.stderr:.4f}",
            f"{result.tokens:,}",
            f"{result.seconds:.1f}",
        )
        for result in results
    )
    show_tables([(None, Table(("file", "size", "perplexity", "tokens", "seconds"), rows))])
    half = results[0].scored.value == "half"
    part = "the second half of each is scored" if half else "all but each one's first token count"
    stdout_console().print(
        f"{counted(results[0].chunks, 'chunk')} of {results[0].context} tokens; {part}.",
        style="dim",
    )
