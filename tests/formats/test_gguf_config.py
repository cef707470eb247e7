"""A shape out of metadata that other tools wrote, as llama.cpp reads them."""

from __future__ import annotations

import pytest

from qwen3q.errors import ModelError
from qwen3q.formats.gguf_config import gguf_config

METADATA = {
    "general.architecture": "qwen3",
    "tokenizer.ggml.tokens": ["a"] * 96,
    "qwen3.embedding_length": 256,
    "qwen3.block_count": 2,
    "qwen3.feed_forward_length": 512,
    "qwen3.attention.head_count": 8,
    "qwen3.attention.head_count_kv": 2,
    "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
}


def test_what_is_left_out_has_llama_cpps_default():
    """``llama_hparams``: heads share the embedding, and the vocabulary is the tokens'."""
    config = gguf_config(METADATA, "m.gguf", tied=True)
    assert (config.head_dim, config.vocab_size, config.yarn) == (32, 96, None)
    stated = METADATA | {"qwen3.vocab_size": 128}
    assert gguf_config(stated, "m.gguf", tied=True).vocab_size == 96
    assert gguf_config(stated | {"tokenizer.ggml.tokens": []}, "m", tied=True).vocab_size == 128


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("qwen3.rope.dimension_count", 16, "dimension_count is 16, but a head has 32"),
        ("qwen3.attention.value_length", 64, "value_length is 64, but a head has 32"),
        ("qwen3.rope.scaling.type", "{{", "type is '{{', which llama.cpp does not know"),
        ("qwen3.attention.head_count", [8, 8], r"num_attention_heads is \[8, 8\]"),
        ("tokenizer.ggml.tokens", 4, "has no vocab_size"),
        ("general.architecture", ["qwen3"], "which is not Qwen3"),
    ],
)
def test_what_llama_cpp_would_not_survive_is_refused(key, value, says):
    with pytest.raises(ModelError, match=f"m.gguf.*{says}") as caught:
        gguf_config(METADATA | {key: value}, "m.gguf", tied=True)
    assert caught.value.hint
