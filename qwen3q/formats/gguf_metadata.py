"""The key-value section of a Qwen3 GGUF: architecture, tokenizer, sampling, provenance.

Keys as llama.cpp reads them (``llama-arch.cpp``, ``gguf-py/gguf/constants.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3q import __version__
from qwen3q.errors import ModelError
from qwen3q.formats.gguf_file import Value, ValueType
from qwen3q.models.config import Qwen3Config, token_ids
from qwen3q.models.tokenizer import AddedToken, TokenizerFiles

ARCHITECTURES = {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
QUANTIZATION_VERSION = 2

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's token types (``enum llama_token_type``)."""

_MOST_SAMPLING = 1e6
"""Above, a temperature or top_k means nothing, and might not fit its field."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the weights came from.

    Attributes:
        title: the model's name, such as ``Qwen3-8B``.
        repo: Hub id, if it came from there.
        revision: the Hub's commit, if known.
    """

    title: str
    repo: str | None = None
    revision: str | None = None


def check_runs_in_llama(config: Qwen3Config) -> None:
    """Refuses what a config may say but llama.cpp's qwen3moe graph can't run.

    Raises:
        ModelError: names the key.
    """
    if not config.is_moe:
        return
    if not config.norm_topk_prob:
        raise ModelError(
            "norm_topk_prob is false; llama.cpp's qwen3moe always normalises the routing weights.",
            "Such a model would answer wrongly as GGUF; use a GPTQ, AWQ or INT4 format.",
        )
    dense = [i for i in range(config.num_hidden_layers) if not config.is_moe_layer(i)]
    if dense:
        raise ModelError(
            f"Layer {dense[0]} has a dense MLP between expert layers; "
            "llama.cpp's qwen3moe wants experts in every layer."
        )


def gguf_metadata(
    config: Qwen3Config,
    tokenizer: TokenizerFiles,
    provenance: Provenance,
    generation: Mapping[str, Any],
    *,
    parameters: int,
    file_type: int,
) -> dict[str, Value]:
    """All metadata of one file, in writing order.

    Args:
        generation: ``generation_config.json``, may be empty.
        parameters: for the size label, such as ``8.2B``.
        file_type: llama.cpp's number of the type mix.
    """
    return {
        **_general(config, provenance, generation, parameters, file_type),
        **architecture_metadata(config),
        **_tokenizer(config, tokenizer, generation),
    }


def _general(
    config: Qwen3Config,
    provenance: Provenance,
    generation: Mapping[str, Any],
    parameters: int,
    file_type: int,
) -> dict[str, Value]:
    values = {
        "general.architecture": _string(ARCHITECTURES[config.model_type]),
        "general.type": _string("model"),
        "general.name": _string(provenance.title),
        "general.size_label": _string(size_label(parameters)),
        "general.quantized_by": _string(f"qwen3q {__version__}"),
    }
    if provenance.repo:
        values["general.source.repo_url"] = _string(f"https://huggingface.co/{provenance.repo}")
    if provenance.revision:
        values["qwen3q.source.revision"] = _string(provenance.revision)
    for key, name in (("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p")):
        value = generation.get(key)
        if isinstance(value, (int, float)) and 0 <= value <= _MOST_SAMPLING:
            values[f"general.sampling.{name}"] = Value(ValueType.F32, float(value))
    top_k = generation.get("top_k")
    if isinstance(top_k, int) and 0 <= top_k <= _MOST_SAMPLING:
        values["general.sampling.top_k"] = Value(ValueType.I32, top_k)
    values["general.quantization_version"] = _u32(QUANTIZATION_VERSION)
    values["general.file_type"] = _u32(file_type)
    return values


def architecture_metadata(config: Qwen3Config) -> dict[str, Value]:
    """The keys that give the model its shape."""
    values = {
        "block_count": _u32(config.num_hidden_layers),
        "context_length": _u32(config.max_position_embeddings),
        "embedding_length": _u32(config.hidden_size),
        "feed_forward_length": _u32(config.intermediate_size),
        "attention.head_count": _u32(config.num_attention_heads),
        "attention.head_count_kv": _u32(config.num_key_value_heads),
        "attention.key_length": _u32(config.head_dim),
        "attention.value_length": _u32(config.head_dim),
        "attention.layer_norm_rms_epsilon": Value(ValueType.F32, config.rms_norm_eps),
        "rope.dimension_count": _u32(config.head_dim),
        "rope.freq_base": Value(ValueType.F32, config.rope_theta),
        "vocab_size": _u32(config.vocab_size),
    }
    if config.yarn:
        values |= {
            "rope.scaling.type": _string("yarn"),
            "rope.scaling.factor": Value(ValueType.F32, config.yarn.factor),
            "rope.scaling.original_context_length": _u32(
                config.yarn.original_max_position_embeddings
            ),
        }
    if config.is_moe:
        values |= {
            "expert_count": _u32(config.num_experts),
            "expert_used_count": _u32(config.num_experts_per_tok),
            "expert_feed_forward_length": _u32(config.moe_intermediate_size),
        }
    architecture = ARCHITECTURES[config.model_type]
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _tokenizer(
    config: Qwen3Config, tokenizer: TokenizerFiles, generation: Mapping[str, Any]
) -> dict[str, Value]:
    tokens, types = _token_table(config.vocab_size, tokenizer)
    values = {
        "tokenizer.ggml.model": _string("gpt2"),
        "tokenizer.ggml.pre": _string("qwen2"),
        "tokenizer.ggml.tokens": _strings(tokens),
        "tokenizer.ggml.token_type": Value(ValueType.ARRAY, types, ValueType.I32),
        "tokenizer.ggml.merges": _strings(tokenizer.merges),
    }
    eos = tokenizer.named_id("eos_token")
    if eos is None:
        ends = (*token_ids(generation.get("eos_token_id")), *config.eos_token_ids)
        eos = ends[0] if ends else None
    bos = tokenizer.named_id("bos_token")
    ids = {
        "eos": eos,
        "padding": tokenizer.named_id("pad_token"),
        "bos": config.bos_token_id if bos is None else bos,
    }
    for name, token in ids.items():
        if token is not None:
            values[f"tokenizer.ggml.{name}_token_id"] = _u32(token)
    values["tokenizer.ggml.add_bos_token"] = Value(
        ValueType.BOOL, bool(tokenizer.config.get("add_bos_token", False))
    )
    if tokenizer.chat_template:
        values["tokenizer.chat_template"] = _string(tokenizer.chat_template)
    return values


def _token_table(vocab_size: int, tokenizer: TokenizerFiles) -> tuple[list[str], list[int]]:
    """Token text and type for every row of the embedding; rows without a token are padding."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    entries = [(i, text, NORMAL) for text, i in tokenizer.vocab.items()]
    entries += [(token.id, token.content, _added_type(token)) for token in tokenizer.added]
    for i, text, kind in entries:
        if not isinstance(i, int) or not 0 <= i < vocab_size:
            raise ModelError(
                f"tokenizer.json gives token {text!r} the id {i}, "
                f"but the embedding has {vocab_size} rows.",
                "Tokenizer and weights come from different models.",
            )
        tokens[i], types[i] = text, kind
    return tokens, types


def _added_type(token: AddedToken) -> int:
    """``<|...|>`` is markup even where the tokenizer does not call it special."""
    markup = token.content.startswith("<|") and token.content.endswith("|>")
    return CONTROL if token.special or markup else USER_DEFINED


def size_label(parameters: int) -> str:
    """``8.2B``, ``596M``: how models are labelled by size."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.1f}B"
    if parameters >= 10_000_000:
        return f"{parameters / 1e6:.0f}M"
    return f"{parameters / 1e6:.1f}M"


def _string(text: str) -> Value:
    return Value(ValueType.STRING, text)


def _strings(texts: Sequence[str]) -> Value:
    return Value(ValueType.ARRAY, texts, ValueType.STRING)


def _u32(number: int) -> Value:
    return Value(ValueType.U32, number)
