"""``qwen3q verify``: hold a quantized folder against its plan and its manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qwen3q.cli.output import JsonFlag, note, print_json, progress_bar, stdout_console
from qwen3q.errors import Qwen3qError, UsageError
from qwen3q.models.source import local_folder


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    folder: Annotated[str, typer.Argument(help="A quantized model folder.")],
    source: Annotated[
        str | None,
        typer.Option(help="The model it was made from, to compare checksums with."),
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Check a quantized folder: layout, values, tokenizer, plan, report and checksums.

    A folder that another tool wrote has no manifest; of it, the first three are checked.
    """
    from qwen3q.quantize.names import MANIFEST_NAME
    from qwen3q.quantize.verify import verify_folder

    path = _verified_folder(folder)
    origin = None if source is None else _source_folder(source)
    with progress_bar(quiet=json_output) as progress:
        checks = verify_folder(path, origin, progress)
    passed = all(check.passed for check in checks)
    if json_output:
        print_json(
            {
                "folder": str(path),
                "passed": passed,
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        console = stdout_console()
        for check in checks:
            mark, style = ("ok", "green") if check.passed else ("FAILED", "red")
            console.print(f"{mark:<7}", style=style, end="")
            console.print(f"{check.name:<9} {check.detail}")
        if not (path / MANIFEST_NAME).is_file():
            note(f"No {MANIFEST_NAME} here: plan, report and checksums can't be checked.")
    if not passed:
        raise typer.Exit(1)


def _verified_folder(name: str) -> Path:
    if Path(name).suffix == ".gguf" and Path(name).is_file():
        raise UsageError(
            f"{name} is a GGUF file; verify checks folders.",
            f"`qwen3q inspect {name}` reads its header.",
        )
    return local_folder(name)


def _source_folder(name: str) -> Path:
    try:
        return local_folder(name)
    except Qwen3qError as error:
        raise UsageError(f"--source {name}: {error.message}", error.hint) from None
