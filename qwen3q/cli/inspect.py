"""``qwen3q inspect``: what a model, folder or file holds, from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qwen3q.cli.output import JsonFlag, format_bytes, print_json, stdout_console
from qwen3q.inspection import Inspection, inspect_model


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    model: Annotated[
        str, typer.Argument(help="Folder or its file, GGUF file, Hub id, alias or demo.")
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """What a model holds: shape, format, tensors and bytes. Reads headers, never weights."""
    found = inspect_model(model)
    if json_output:
        print_json(_json(found))
        return
    console = stdout_console()
    for label, value in found.facts.items():
        console.print(f"{label:<18}{value}")
    types = ", ".join(
        f"{count} {kind} ({format_bytes(nbytes)})" for kind, (count, nbytes) in found.types.items()
    )
    if types:
        console.print(f"{'tensors':<18}{types}")
    if tensors:
        _list_tensors(found)


def _list_tensors(found: Inspection) -> None:
    from rich.table import Table

    table = Table("name", "type", "shape", "bytes")
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape))
        table.add_row(tensor.name, tensor.type, shape, f"{tensor.nbytes:,}")
    stdout_console().print(table)


def _json(found: Inspection) -> dict[str, Any]:
    return {
        "path": str(found.path) if isinstance(found.path, Path) else None,
        "facts": found.facts,
        "config": found.config,
        "tensor_bytes": sum(t.nbytes for t in found.tensors),
        "tensors": [
            {"name": t.name, "type": t.type, "shape": list(t.shape), "bytes": t.nbytes}
            for t in found.tensors
        ],
    }
