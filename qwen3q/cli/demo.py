"""``qwen3q demo``: the whole path on the embedded demo model, in one table."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.options import CoresOption
from qwen3q.cli.output import JsonFlag, format_bytes, note, print_json, progress_bar, stdout_console

if TYPE_CHECKING:
    from qwen3q.demo import DemoRow


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Keep the files here; default: a temporary folder.")
    ] = None,
    threads: CoresOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Plan, quantize, measure and ask: the whole path on the embedded demo model.

    The demo is a 7.6-million-parameter model of Qwen3's architecture, trained for this purpose.
    It adds numbers of up to three digits when it thinks; it knows next to nothing else.
    """
    from qwen3q.demo import run_demo

    with tempfile.TemporaryDirectory() as scratch, progress_bar(quiet=json_output) as progress:
        rows = run_demo(out or Path(scratch), threads=threads, progress=progress)
    if json_output:
        print_json({"demo": [_row_json(row) for row in rows]})
    else:
        _show(rows)
        if out is not None:
            note(f"Files are in {out}. Talk with one: qwen3q chat {rows[-1].path}")
    if not rows[0].right:
        raise typer.Exit(1)


def _row_json(row: DemoRow) -> dict[str, Any]:
    return {
        "format": row.plan.format,
        "file_bytes": row.plan.file_bytes,
        "bits_per_weight": round(row.plan.bits_per_weight, 4),
        "perplexity": round(row.perplexity.perplexity, 4),
        "perplexity_stderr": round(row.perplexity.stderr, 4),
        "tokens": row.perplexity.tokens,
        "context": row.perplexity.context,
        "thinking": row.thinking,
        "answer": row.answer,
        "right": row.right,
    }


def _show(rows: Sequence[DemoRow]) -> None:
    from rich.table import Table
    from rich.text import Text

    from qwen3q.demo import QUESTION

    first = rows[0]
    table = Table(
        title=f"{first.plan.model}: {first.plan.parameters:,} parameters",
        caption=f"perplexity over {first.perplexity.tokens:,} tokens, context "
        f"{first.perplexity.context}; the answer is to “{QUESTION}” in thinking mode",
        title_style="bold",
    )
    for label, justify in (
        ("format", "left"),
        ("file", "right"),
        ("bits/weight", "right"),
        ("perplexity", "right"),
        ("answer", "left"),
    ):
        table.add_column(label, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        mark = ("✓", "green") if row.right else ("✗", "red")
        table.add_row(
            "float (BF16)" if row is first else row.plan.format,
            format_bytes(row.plan.file_bytes),
            f"{row.plan.bits_per_weight:.2f}",
            f"{row.perplexity.perplexity:.2f} ± {row.perplexity.stderr:.2f}",
            Text.assemble(mark, f" {row.answer}"),
        )
    stdout_console().print(table)
