"""``qwen3q eval speed``: prefill and decode of GGUF files on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3q.cli.output import JsonFlag, note, print_json, progress_bar, stdout_console


def speed(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="GGUF files, or MODEL:TYPE."),
    ],
    prompt: Annotated[
        list[int] | None, typer.Option(help="Prompt tokens, repeatable.  [default: 512]")
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Tokens to decode.")] = 64,
    depth: Annotated[
        list[int] | None, typer.Option(help="Tokens in the cache before, repeatable. [default: 0]")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="After one warm-up.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: physical cores.", show_default=False)
    ] = None,
    gpu_layers: Annotated[int, typer.Option(help="Layers on the GPU; -1 is all.")] = -1,
    out: Annotated[
        Path | None, typer.Option(help="File for the same figures as llama-bench's JSON.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what is downloaded.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Tokens per second, time to the first token and between tokens."""
    from qwen3q.evaluate.report import machine_facts, write_text
    from qwen3q.evaluate.speed import llama_bench_row, measure_speed, speed_row
    from qwen3q.evaluate.speed_options import SpeedOptions
    from qwen3q.llama.model import LlamaModel, LoadOptions
    from qwen3q.quantize.local_gguf import local_gguf

    options = SpeedOptions(
        tuple(prompt or (512,)), generate, tuple(depth or (0,)), repeats, threads
    )
    rows: list[dict[str, Any]] = []
    bench = []
    for name in models:
        with progress_bar(quiet=json_output) as progress:
            path = local_gguf(name, offline=offline, progress=progress)
            with LlamaModel(path, LoadOptions(gpu_layers=gpu_layers)) as model:
                for test in measure_speed(model, options, progress):
                    rows.append({"artefact": path.stem} | speed_row(test))
                    bench.append(llama_bench_row(model, test, options))
    if out is not None:
        write_text(out, json.dumps(bench, indent=2) + "\n")
    if json_output:
        print_json({"machine": machine_facts(), "speed": rows})
        return
    show_speed(rows)
    if out is not None:
        note(str(out))


def show_speed(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table per artefact, one line per test."""
    from rich.table import Table

    from qwen3q.evaluate.speed_tables import speed_table

    for name in dict.fromkeys(str(row["artefact"]) for row in rows):
        cells = speed_table({"speed": [row for row in rows if row["artefact"] == name]})
        assert cells is not None
        table = Table(title=name, title_style="bold", title_justify="left")
        for column, head in enumerate(cells.heads[1:]):
            table.add_column(head, justify="right" if column else "left", no_wrap=True)
        for row in cells.rows:
            table.add_row(*row[1:])
        stdout_console().print(table)
    if rows:
        stdout_console().print(
            "Three latencies: between tokens at the 50th, 95th and 99th percentile.", style="dim"
        )
