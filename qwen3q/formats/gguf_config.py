"""A model's shape out of a GGUF file's metadata: the way back from ``gguf_metadata``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.models.config import Qwen3Config, parse_config

_MODEL_TYPES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe"}

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
        ModelError: no Qwen3, or a key is missing.
    """
    architecture = str(metadata.get("general.architecture"))

    def get(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    raw: dict[str, Any] = {name: get(key) for name, key in _KEYS.items()}
    raw["model_type"] = _MODEL_TYPES.get(architecture, architecture)
    raw["vocab_size"] = raw["vocab_size"] or len(metadata.get("tokenizer.ggml.tokens", ()))
    raw["tie_word_embeddings"] = tied
    raw["norm_topk_prob"] = True
    if get("rope.scaling.type") == "yarn":
        raw["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
        }
    return parse_config({key: value for key, value in raw.items() if value is not None}, where)
