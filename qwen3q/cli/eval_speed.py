"""``qwen3q eval speed``: prefill and decode of GGUF files and folders on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.options import (
    ContributeOption,
    GpuLayersOption,
    OfflineFlag,
    ThreadsOption,
    TorchDeviceOption,
)
from qwen3q.cli.output import JsonFlag, note, print_json, progress_bar, stdout_console

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from qwen3q.evaluate.tables import Table


def speed(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="GGUF files, MODEL:TYPE, or folders (in torch)."),
    ],
    prompt: Annotated[
        list[int] | None, typer.Option(help="Prompt tokens, repeatable. Default: 512.")
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Tokens to decode.")] = 64,
    depth: Annotated[
        list[int] | None, typer.Option(help="Tokens in the cache before, repeatable. Default: 0.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Sequences side by side, repeatable. Default: 1.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="After one warm-up.")] = 5,
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = -1,
    device: TorchDeviceOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the same figures as llama-bench's JSON.")
    ] = None,
    contribute: ContributeOption = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Tokens per second, latencies and memory, beside what the estimator says of them."""
    from qwen3q.devices import check_device
    from qwen3q.evaluate.artefact import find_artefact
    from qwen3q.evaluate.contribute import contribute_rows
    from qwen3q.evaluate.report import machine_facts
    from qwen3q.evaluate.speed_options import SpeedOptions
    from qwen3q.evaluate.speed_run import run_speed
    from qwen3q.files import require_file_target, write_text

    options = SpeedOptions(
        tuple(prompt or (512,)),
        generate,
        tuple(depth or (0,)),
        repeats,
        threads,
        tuple(batch or (1,)),
    )
    if device is not None:
        check_device(device)
    if out is not None:
        require_file_target(out)
    report: dict[str, Any] = {"machine": machine_facts(), "speed": [], "memory": []}
    bench: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in models:
        with progress_bar(quiet=json_output) as progress:
            artefact = find_artefact(name, offline=offline, progress=progress)
            run = run_speed(
                artefact, options, gpu_layers=gpu_layers, device=device, progress=progress
            )
        report["machine"] |= run.machine
        report["speed"] += run.rows
        report["memory"] += run.memory
        bench += run.llama_bench
        notes += [run.note] if run.note else []
        if contribute is not None:
            notes += contribute_rows(contribute, artefact, run)
    report["notes"] = list(dict.fromkeys(notes))
    if out is not None:
        write_text(out, json.dumps(bench, indent=2) + "\n")
    if json_output:
        print_json(report)
        return
    show_speed(report)
    if out is not None:
        note(str(out))


def show_speed(report: Mapping[str, Any]) -> None:
    """Tables of speed and memory per artefact, measured beside predicted; nothing if not run."""
    from qwen3q.evaluate.groups import named_by_run
    from qwen3q.evaluate.speed_tables import SPEED_NOTE, memory_table, speed_table

    console = stdout_console()
    named = {key: named_by_run(report.get(key, [])) for key in ("speed", "memory")}
    names = dict.fromkeys(str(row["artefact"]) for row in named["speed"])
    for name in names:
        own = {key: [row for row in rows if row["artefact"] == name] for key, rows in named.items()}
        for cells in (speed_table(own), memory_table(own)):
            if cells is not None:
                console.print(_table(name if cells.heads[2] == "test" else "", cells))
    if names:
        console.print(SPEED_NOTE, style="dim")
    runs = (report, *report.get("runs", []))
    for line in dict.fromkeys(line for run in runs for line in run.get("notes", [])):
        note(line)


def _table(name: str, cells: Table) -> RichTable:
    """One artefact's table; its name, if given, and engine are the title, not columns."""
    from rich.table import Table as RichTable

    title = f"{name} ({cells.rows[0][1]})" if name else None
    table = RichTable(title=title, title_style="bold", title_justify="left")
    for column, head in enumerate(cells.heads[2:]):
        table.add_column(head, justify="right" if column else "left", no_wrap=column > 0)
    for row in cells.rows:
        table.add_row(*row[2:])
    return table
