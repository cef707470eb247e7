"""``python -m qwen3q.synthetic qwen3-8b OUT --layers 2``: a random model of that shape."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from qwen3q.cli.output import format_bytes, progress_bar
from qwen3q.errors import Qwen3qError
from qwen3q.models.source import describe
from qwen3q.synthetic.checkpoint import STORED_DTYPES, reshape_config, write_checkpoint


def synthetic(
    name: Annotated[str, typer.Argument(help="A model whose shape to take.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    layers: Annotated[int | None, typer.Option(help="Decoder layers.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden size.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="Inner size of the MLP.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Key and value heads.")] = None,
    head_dim: Annotated[int | None, typer.Option(help="Size of a head.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Rows of the embedding.")] = None,
    experts: Annotated[int | None, typer.Option(help="Experts per layer.")] = None,
    experts_per_token: Annotated[int | None, typer.Option(help="Active experts.")] = None,
    moe_intermediate: Annotated[int | None, typer.Option(help="Inner size of an expert.")] = None,
    shards: Annotated[int | None, typer.Option(help="Files at most; default 5 GB each.")] = None,
    seed: Annotated[int, typer.Option(help="What the weights are drawn from.")] = 0,
    dtype: Annotated[str, typer.Option(help=" | ".join(STORED_DTYPES))] = "bfloat16",
) -> None:
    """Write a checkpoint of random weights, shaped like a Qwen3 or smaller."""
    config = reshape_config(
        describe(name).config,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        num_experts=experts,
        num_experts_per_tok=experts_per_token,
        moe_intermediate_size=moe_intermediate,
    )
    start = time.perf_counter()
    with progress_bar() as progress:
        files = write_checkpoint(
            config, out, dtype=dtype, shards=shards, seed=seed, progress=progress
        )
    seconds = time.perf_counter() - start
    nbytes = sum(file.stat().st_size for file in files)
    typer.echo(
        f"{out}: {len(files)} file{'s' if len(files) > 1 else ''}, {format_bytes(nbytes)} "
        f"in {seconds:.1f} s ({format_bytes(nbytes / seconds)}/s)"
    )


if __name__ == "__main__":
    try:
        typer.run(synthetic)
    except Qwen3qError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n" if error.hint else f"{error.message}\n")
        sys.exit(error.exit_code)
