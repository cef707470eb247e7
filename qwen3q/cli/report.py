"""``qwen3q report``: runs of ``qwen3q eval``, from one machine or several, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3q.cli.output import JsonFlag, print_json


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    files: Annotated[list[Path], typer.Argument(metavar="REPORT.json...", help="What eval wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, report.md and report.json.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Merge the reports of several runs.

    Results on the same text against the same reference share a plot and a table.
    """
    from qwen3q.cli.eval_fidelity import show_report
    from qwen3q.evaluate.report import merge_reports, read_report, write_report

    merged = merge_reports([read_report(path) for path in files])
    written = write_report(merged, out) if out is not None else []
    if json_output:
        print_json(merged)
        return
    show_report(merged, written)
