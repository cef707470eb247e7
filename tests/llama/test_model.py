"""Loading, refusals with llama.cpp's own reason, and the vocabulary against the HF tokenizer."""

from __future__ import annotations

import re
import struct
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from qwen3q import threads
from qwen3q.errors import LlamaError, UsageError
from qwen3q.llama.breakdown import memory_breakdown
from qwen3q.llama.capi import lib
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.log import CONTINUE, ERROR, Log
from qwen3q.llama.model import LlamaModel, LoadOptions
from qwen3q.llama.text import TextStream, detokenize

TEXTS = [
    "What is 413 + 389?",
    "naïve café — 東京 🙂🙃 \u200dzwj",
    "def f(x):\n\treturn  x**2\n\n\n",
    "  leading, trailing  ",
    "<|im_start|>user\nhi<|im_end|>\n<think>",
]


@pytest.fixture(scope="module")
def hf(demo_folder) -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_the_hf_tokenizer(text, demo_model, hf):
    expected = hf.encode(text, add_special_tokens=False).ids
    assert demo_model.tokenize(text, parse_special=True).tolist() == expected


def test_markup_is_text_unless_asked_for(demo_model):
    text = "<|im_start|>"
    assert len(demo_model.tokenize(text, parse_special=True)) == 1
    assert len(demo_model.tokenize(text)) > 1
    assert detokenize(demo_model, demo_model.tokenize(text).tolist()) == text


@pytest.mark.parametrize("text", TEXTS[:4])
def test_text_comes_back_token_by_token(text, demo_model):
    stream = TextStream(demo_model)
    pieces = [stream.feed(int(token)) for token in demo_model.tokenize(text)]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_character_cut_off_is_replaced_once(demo_model):
    tokens = demo_model.tokenize("東").tolist()
    assert len(tokens) > 1
    assert detokenize(demo_model, tokens[:-1]) == "\N{REPLACEMENT CHARACTER}"


def test_ends_are_known(demo_model):
    ends = [demo_model.special_token(text) for text in ("<|im_end|>", "<|endoftext|>")]
    assert None not in ends
    assert all(demo_model.is_end(token) for token in ends)
    assert not demo_model.is_end(demo_model.special_token("<think>"))
    assert demo_model.special_token("two words") is None


def test_metadata(demo_model, demo_gguf):
    assert demo_model.metadata("general.architecture") == "qwen3"
    assert demo_model.metadata("no.such.key") is None
    assert demo_model.train_context == 2048
    assert demo_model.nbytes < demo_gguf.stat().st_size
    assert "<|im_start|>" in demo_model.chat_template()


@pytest.mark.skipif(sys.platform != "linux", reason="llama.cpp's account is read on Linux alone")
@pytest.mark.parametrize("told", [True, False])
def test_a_token_in_the_cache_takes_what_llama_allocates(told, demo_model, monkeypatch):
    if not told:  # llama.cpp then takes hidden size by heads
        monkeypatch.setattr(demo_model, "hidden_size", 8 * 64)
        monkeypatch.setattr(demo_model, "metadata", lambda key: None)
    with LlamaContext(demo_model, ContextOptions(context=512, sequences=2)) as context:
        allocated = sum(device.kv for device in memory_breakdown(context.handle))
    assert demo_model.kv_bytes_per_token * 2 * 512 == allocated


def test_vocabulary_alone_still_tokenizes(demo_gguf, demo_model):
    with LlamaModel(demo_gguf, LoadOptions(vocab_only=True)) as model:
        assert model.tokenize(TEXTS[0]).tolist() == demo_model.tokenize(TEXTS[0]).tolist()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw.replace(b"qwen3", b"zwen3"), "unknown model architecture: 'zwen3'"),
        (lambda raw: raw.replace(b"gpt2", b"tpg2"), "unknown tokenizer: 'tpg2'"),
    ],
)
def test_what_llama_cpp_refuses_is_told_with_its_reason(damage, reason, demo_gguf, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage(demo_gguf.read_bytes()))
    with pytest.raises(LlamaError, match=reason):
        LlamaModel(path)


NUMBERS = {
    "block_count": (struct.pack("<II", 4, 6), struct.pack("<II", 4, 600)),
    "rope.dimension_count": (struct.pack("<II", 4, 64), struct.pack("<II", 4, 32)),
    "attention.layer_norm_rms_epsilon": (struct.pack("<If", 6, 1e-6), struct.pack("<If", 6, -1)),
}
"""Metadata that llama.cpp ends the process over: its value and another."""


@pytest.mark.parametrize("key", NUMBERS)
def test_a_file_that_would_end_the_process_is_refused(key, demo_gguf, tmp_path):
    good, bad = (b"qwen3." + key.encode() + value for value in NUMBERS[key])
    data = demo_gguf.read_bytes()
    assert data.count(good) == 1
    (tmp_path / "bad.gguf").write_bytes(data.replace(good, bad))
    code = f"from qwen3q.llama.model import *; LlamaModel(Path({str(tmp_path / 'bad.gguf')!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert re.search(r"qwen3q\.errors\.ModelError: .*bad\.gguf", run.stderr)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LlamaError, match=r"no GGUF file at .*none\.gguf"):
        LlamaModel(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (ContextOptions(value_type="q8_0", flash_attention=False), LlamaError, "flash_attn"),
        (ContextOptions(batch=0), UsageError, "batch 0 is outside"),
        (ContextOptions(ubatch=4096), UsageError, "ubatch 4096 is outside"),
        (ContextOptions(sequences=257), UsageError, "sequences 257"),
        (ContextOptions(key_type="q4_k"), UsageError, "'q4_k' is no type for the KV cache"),
        (ContextOptions(yarn=0.5), UsageError, "YaRN factor 0.5"),
    ],
)
def test_impossible_contexts_are_refused(options, error, message, demo_model):
    with pytest.raises(error, match=message):
        LlamaContext(demo_model, options)


def test_the_log_keeps_reasons_apart():
    log = Log()
    log.write(ERROR, "first: old trouble\n")
    since = log.line_count
    log.write(2, "load: fine\n")
    assert log.reason(since) == "llama.cpp gave no reason"
    log.write(ERROR, "llama_model_load: error loading model: tensor 'a' is bad.\n")
    log.write(CONTINUE, ".")
    log.write(ERROR, "load: failed\n")
    assert log.reason(since) == "tensor 'a' is bad"


@pytest.mark.parametrize(
    ("asked", "hand_over", "used"), [(None, 1e-3, 1), (None, 1e-5, 4), (3, 1e-3, 3)]
)
def test_contexts_of_narrow_models_wait_for_no_slow_thread(
    demo_model, asked, hand_over, used, monkeypatch
):
    monkeypatch.setattr(threads, "default_threads", lambda: 4)
    monkeypatch.setattr(threads, "hand_over_seconds", lambda: hand_over)
    with LlamaContext(demo_model, ContextOptions(context=64, threads=asked)) as context:
        assert lib.llama_n_threads(context.handle) == used
        assert lib.llama_n_threads_batch(context.handle) == used
