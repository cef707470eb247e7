"""``qwen3q verify``: hold a quantized folder against its plan and its manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qwen3q.cli.output import JsonFlag, print_json, progress_bar, stdout_console


def register(app: typer.Typer) -> None:
    app.command("verify")(verify)


def verify(
    folder: Annotated[Path, typer.Argument(help="A quantized model folder.")],
    source: Annotated[
        Path | None, typer.Option(help="The folder it was made from, to compare checksums with.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Check a quantized folder: checksums, plan, layout, values and report.

    A folder that another tool wrote has no manifest; of it, layout and values are checked.
    """
    from qwen3q.quantize.verify import verify_folder

    with progress_bar(quiet=json_output) as progress:
        checks = verify_folder(folder, source, progress)
    passed = all(check.passed for check in checks)
    if json_output:
        print_json(
            {
                "folder": str(folder),
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
    if not passed:
        raise typer.Exit(1)
