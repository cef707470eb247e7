"""``qwen3q doctor``: what works on this machine, and the one command for what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3q.cli.output import JsonFlag, print_json, stdout_console
from qwen3q.doctor import Check, run_checks

_MARKS = {"ok": ("ok  ", "green"), "missing": ("--  ", "yellow"), "bad": ("bad ", "red")}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    json_output: JsonFlag = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if anything is missing.")
    ] = False,
) -> None:
    """What works on this machine, and the one command for what does not."""
    checks = run_checks()
    if json_output:
        print_json({"checks": [_json(check) for check in checks]})
    else:
        console = stdout_console()
        for check in checks:
            mark, style = _MARKS[check.status]
            console.print(mark, style=style, end="")
            console.print(f"{check.name:<18}{check.found}")
            if check.remedy:
                console.print(f"{'':22}{check.remedy}", style="dim")
    if any(c.status == "bad" or (strict and c.status == "missing") for c in checks):
        raise typer.Exit(1)


def _json(check: Check) -> dict[str, str]:
    return {
        "name": check.name,
        "status": check.status,
        "found": check.found,
        "remedy": check.remedy,
    }
