"""``qwen3q models``: the catalog of releases, and why their head size is what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from qwen3q.cli.output import JsonFlag, format_bytes, print_json, stdout_console
from qwen3q.models.catalog import Release, catalog, find_release
from qwen3q.models.source import unknown_model

BF16_BYTES = 2
F16_BYTES = 2
_HEADINGS = (
    "name",
    "params",
    "active",
    "layers",
    "heads",
    "context",
    "BF16 size",
)


def register(app: typer.Typer) -> None:
    app.command("models")(models)


def models(
    name: Annotated[str | None, typer.Argument(help="One release, in detail.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why head_dim is not hidden_size / heads.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """The Qwen3 releases: sizes, shapes and names."""
    releases: Sequence[Release] = catalog()
    if name is not None:
        release = find_release(name)
        if release is None:
            raise unknown_model(name)
        releases = [release]
    if json_output:
        entries = [_json(release) for release in releases]
        print_json({"models": entries} if name is None else entries[0])
        return
    lines = _table(releases) if name is None else _details(releases[0])
    if explain:
        lines += ["", *_explanation(releases)]
    console = stdout_console()
    for line in lines:
        console.print(line)


def _table(releases: Sequence[Release]) -> list[str]:
    rows = [_HEADINGS, *(_row(release) for release in releases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _row(release: Release) -> tuple[str, ...]:
    config = release.config
    return (
        release.name,
        _count(release.parameters),
        _count(release.active_parameters),
        str(config.num_hidden_layers),
        f"{config.num_attention_heads}/{config.num_key_value_heads}",
        str(config.max_position_embeddings),
        format_bytes(release.parameters * BF16_BYTES),
    )


def _details(release: Release) -> list[str]:
    config = release.config
    facts = {
        "Hub ids": ", ".join(release.repos),
        "parameters": f"{release.parameters:,}",
        "active": f"{release.active_parameters:,}",
        "BF16 size": format_bytes(release.parameters * BF16_BYTES),
        "layers": str(config.num_hidden_layers),
        "hidden_size": str(config.hidden_size),
        "heads": f"{config.num_attention_heads} query, {config.num_key_value_heads} key and value",
        "head_dim": str(config.head_dim),
        "MLP": f"{config.intermediate_size} inner",
        "vocabulary": str(config.vocab_size),
        "embedding": "tied to the output" if config.tie_word_embeddings else "not tied",
        "context": f"{config.max_position_embeddings} tokens",
        "KV cache": f"{_kv_bytes(release):,} bytes per token in f16",
        "RoPE theta": f"{config.rope_theta:g}",
    }
    if config.is_moe:
        facts["MLP"] = (
            f"{config.num_experts} experts, {config.num_experts_per_tok} active, "
            f"{config.moe_intermediate_size} inner"
        )
    return [
        f"{release.title} ({release.name})",
        *(f"  {fact:<12}{value}" for fact, value in facts.items()),
    ]


def _explanation(releases: Sequence[Release]) -> list[str]:
    """Why ``head_dim`` is stated and not derived, with the releases where it matters."""
    odd = [release for release in releases if _differs(release)]
    if not odd:
        (release, *_) = releases
        config = release.config
        return [
            f"In {release.title}, {config.num_attention_heads} heads x {config.head_dim} happens "
            f"to be hidden_size, {config.hidden_size}. In most Qwen3 it is not."
        ]
    lines = [
        "head_dim is a number of its own in a Qwen3's config. q_proj maps hidden_size to",
        "heads x head_dim and o_proj maps it back, so the two need not be equal:",
    ]
    for release in odd:
        config = release.config
        lines.append(
            f"  {release.name:<22}{config.num_attention_heads:>3} heads x {config.head_dim} = "
            f"{config.q_size:>5}, hidden_size {config.hidden_size}"
        )
    config, wrong = odd[0].config, odd[0].config.hidden_size / odd[0].config.num_attention_heads
    return [
        *lines,
        "Published pages that derive head_dim as hidden_size / heads are wrong for these,",
        "and so is what they compute from it:",
        f"  {odd[0].name} would have a head_dim of {wrong:g}, and its KV cache",
        f"  {_kv_bytes(odd[0]) * wrong / config.head_dim:,.0f} bytes per token in f16 "
        f"in place of {_kv_bytes(odd[0]):,}.",
    ]


def _differs(release: Release) -> bool:
    return release.config.q_size != release.config.hidden_size


def _kv_bytes(release: Release) -> int:
    """Bytes of keys and values that one token adds to an f16 cache."""
    return 2 * release.config.num_hidden_layers * release.config.kv_size * F16_BYTES


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _json(release: Release) -> dict[str, Any]:
    config = release.config
    return {
        "name": release.name,
        "title": release.title,
        "repos": list(release.repos),
        "parameters": release.parameters,
        "active_parameters": release.active_parameters,
        "bf16_bytes": release.parameters * BF16_BYTES,
        "kv_bytes_per_token_f16": _kv_bytes(release),
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "heads_times_head_dim": config.q_size,
        "intermediate_size": None if config.is_moe else config.intermediate_size,
        "experts": config.num_experts,
        "experts_per_token": config.num_experts_per_tok,
        "moe_intermediate_size": config.moe_intermediate_size,
        "vocab_size": config.vocab_size,
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
    }
