"""Random models of two small layers with the demo's vocabulary, and random text for them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3q.calibrate.rows import TokenRows
from qwen3q.models.config import read_config
from qwen3q.plan.schemes import GROUPED_LAYOUTS, Scheme, parse_scheme
from qwen3q.synthetic.checkpoint import write_checkpoint

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}


def tiny_model(folder: Path, demo: Path, *, shards: int = 1, **changes: Any) -> Path:
    """Writes one into ``folder``, whose config is the demo's with ``TINY`` and ``changes``."""
    write_checkpoint(replace(read_config(demo), **TINY | changes), folder, shards=shards)
    return folder


def random_rows(vocab_size: int, seed: int = 0) -> TokenRows:
    """Eight rows of 32 tokens."""
    draw = random.Random(seed).randrange
    rows = tuple(tuple(draw(vocab_size) for _ in range(32)) for _ in range(8))
    return TokenRows(rows, {"name": "random", "tokens": 256})


def tiny_scheme(name: str, group_size: int | None = 32) -> Scheme:
    """The scheme; with groups of that size, where it has groups."""
    grouped = parse_scheme(name).layout in GROUPED_LAYOUTS
    return parse_scheme(name, group_size=group_size if grouped else None)
