"""Makes the table of every catalog model's weights out of its plans.

    python -m qwen3q.memory.tabulate

Run it after a change to the plans; a test holds the table against them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3q.errors import UsageError
from qwen3q.files import write_text
from qwen3q.memory.weights import FORMATS, TABLE, planned_weights, table_entry
from qwen3q.models.catalog import Release, catalog


def weights_table() -> dict[str, Any]:
    """Every release's shape and every shape's weights, planned anew."""
    first: dict[tuple[object, ...], Release] = {}
    shapes = {}
    for release in catalog():
        shapes[release.name] = first.setdefault(_shape(release), release).name
    return {
        "shapes": shapes,
        "weights": {release.name: _entries(release) for release in first.values()},
    }


def _shape(release: Release) -> tuple[object, ...]:
    """What a plan depends on: everything but names, context length and RoPE."""
    c = release.config
    return (
        c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
        c.head_dim, c.vocab_size, c.tie_word_embeddings, c.num_experts, c.num_experts_per_tok,
        c.moe_intermediate_size if c.is_moe else c.intermediate_size, c.dtype,
        c.decoder_sparse_step, c.mlp_only_layers,
    )  # fmt: skip


def _entries(release: Release) -> dict[str, Any]:
    entries = {}
    for fmt in FORMATS:
        try:
            entries[fmt] = table_entry(planned_weights(release.title, release.config, fmt))
        except UsageError:
            continue  # this model does not fit this format
    return entries


def main() -> None:
    """Writes the table beside the package's other data."""
    target = Path(__file__).parent.parent / "data" / TABLE
    write_text(target, json.dumps(weights_table(), indent=0) + "\n")


if __name__ == "__main__":
    main()
