"""A model's shape out of a GGUF file's metadata: the way back from ``gguf_metadata``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.errors import REFETCH, ModelError
from qwen3q.models.config import Qwen3Config, parse_config

MODEL_TYPES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
"""``config.json``'s name of each architecture."""

_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


def gguf_config(metadata: Mapping[str, Any], where: str, *, tied: bool) -> Qwen3Config:
    """The config that a GGUF file's metadata state.

    Args:
        where: the file, for messages.
        tied: whether the file has no output tensor of its own.

    Raises:
        ModelError: no Qwen3, or a key is missing or makes no sense.
    """
    architecture = str(metadata.get("general.architecture"))

    def get(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    raw: dict[str, Any] = {name: get(key) for name, key in _KEYS.items()}
    raw["model_type"] = MODEL_TYPES.get(architecture, architecture)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:  # they count for llama.cpp, not vocab_size
        raw["vocab_size"] = len(tokens)
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    if raw["head_dim"] is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        raw["head_dim"] = hidden // heads  # llama.cpp's default
    raw["tie_word_embeddings"] = tied
    raw["norm_topk_prob"] = True
    scaling = get("rope.scaling.type")
    if scaling not in (None, *_ROPE_SCALINGS):
        raise ModelError(
            f"{where}: {architecture}.rope.scaling.type is {scaling!r}, which llama.cpp does not "
            "know.",
            f"It knows {', '.join(_ROPE_SCALINGS)}.",
        )
    if scaling == "yarn":
        raw["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
    config = parse_config({key: value for key, value in raw.items() if value is not None}, where)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get(key) not in (None, config.head_dim):
            raise ModelError(
                f"{where}: {architecture}.{key} is {get(key)!r}, but a head has {config.head_dim}; "
                "in a Qwen3 they are equal.",
                REFETCH,
            )
    return config
