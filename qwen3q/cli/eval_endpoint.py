"""``qwen3q eval endpoint``: how fast a server answers one client and several at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from qwen3q.cli.options import OfflineFlag
from qwen3q.cli.output import JsonFlag, note, print_json, progress_bar, stdout_console
from qwen3q.counts import counted

_TOKENS = 3
"""The table's column that goes into the title."""


def endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="Such as http://127.0.0.1:8080/v1.")],
    model: Annotated[
        str | None, typer.Option("--endpoint-model", help="Where the server has several.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder, name or GGUF file. Default: what the server serves."
        ),
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(help="Clients at a time, repeatable. Default: 1, 4.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    generate: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Per number of clients. Default: 4 each.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the prompts. Default: drawn anew.", show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--endpoint-timeout", min=0.1, help="Seconds without a sign of life.")
    ] = 600.0,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The same as JSON.")] = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Time streaming clients: first token, between tokens, tokens per second in sum.

    Prompts have exactly the tokens asked for, and no two begin alike, so that prefix caches make
    none of them free; with the seed of an earlier call they may.

    A key goes into QWEN3Q_API_KEY or OPENAI_API_KEY. Where more than half of the requests failed,
    the exit code is 1.
    """
    from pathlib import Path

    from qwen3q.evaluate.endpoint import EndpointOptions, find_endpoint
    from qwen3q.evaluate.named_tokenizer import open_tokenizer
    from qwen3q.evaluate.report import machine_facts
    from qwen3q.evaluate.streaming import StreamingOptions, require_answers, stream_endpoint
    from qwen3q.files import require_file_target, write_text

    options = StreamingOptions(tuple(concurrency or (1, 4)), prompt, generate, requests, seed)
    if out is not None:
        require_file_target(Path(out))
    found = find_endpoint(url, EndpointOptions(model, timeout))
    codec = open_tokenizer(tokenizer, found.served, offline=offline)
    with progress_bar(quiet=json_output) as progress:
        rows = stream_endpoint(found, codec, options, progress)
    served = {"url": found.address.url, "model": found.model, "server": found.server}
    result = {"client": machine_facts(), "endpoint": served, "streaming": rows}
    if out is not None:
        write_text(Path(out), json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if json_output:
        print_json(result)
    else:
        show_streaming(result)
        if out is not None:
            note(out)
    require_answers(rows)


def show_streaming(report: Mapping[str, Any]) -> None:
    """The table, and why requests failed; nothing if no clients were run."""
    from rich.table import Table

    from qwen3q.evaluate.streaming_tables import STREAMING_NOTE, streaming_table

    cells = streaming_table(report)
    if cells is None:
        return
    titles = [f"{row[0]}, {row[_TOKENS]} tokens" for row in cells.rows]
    for title in dict.fromkeys(titles):
        table = Table(title=title, title_style="bold", title_justify="left")
        for column, head in enumerate(cells.heads):
            if column not in (0, _TOKENS):
                table.add_column(head, justify="right", no_wrap=True)
        for row, of in zip(cells.rows, titles, strict=True):
            if of == title:
                table.add_row(*row[1:_TOKENS], *row[_TOKENS + 1 :])
        stdout_console().print(table)
    stdout_console().print(STREAMING_NOTE, style="dim")
    for entry in report["streaming"]:
        for reason, count in entry["failures"].items():
            note(f"{counted(entry['concurrency'], 'client')}, {count} failed: {reason}")
