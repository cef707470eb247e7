"""Perplexity against a naive float64 reference, its definitions, and llama-perplexity itself."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
import pytest
from llama_logits import logits_of

from qwen3q.errors import UsageError
from qwen3q.evaluate.chunks import Scored, encode_beginning, read_as_llama, split_chunks, summarize
from qwen3q.evaluate.perplexity import (
    PerplexityResult,
    measure_perplexity,
    negative_log_likelihoods,
)
from qwen3q.llama.capi import has_amx
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.model import LlamaModel

SENTENCE = "The captain said that {} whales were seen near the {} island, and {} men went ashore. "


@pytest.fixture(scope="module")
def text() -> str:
    rng = np.random.default_rng(0)
    return "".join(SENTENCE.format(*rng.integers(0, 1000, 3)) for _ in range(90))


@pytest.fixture(scope="module")
def model(demo_gguf):
    with LlamaModel(demo_gguf) as loaded:
        yield loaded


def naive(model: LlamaModel, text: str, context: int, first: int, chunks: int) -> np.ndarray:
    """Negative log-likelihoods: one chunk at a time, softmax in float64."""
    tokens = model.tokenize(text)
    nlls = []
    with LlamaContext(model, ContextOptions(context=context, threads=1)) as llama:
        for chunk in range(chunks):
            part = tokens[chunk * context : (chunk + 1) * context]
            logits = logits_of(llama, part).astype(np.float64)
            for position in range(first, context - 1):
                row = logits[position] - logits[position].max()
                nlls.append(np.log(np.exp(row).sum()) - row[part[position + 1]])
    return np.array(nlls)


@pytest.mark.parametrize("context", [64, 200, 640])
@pytest.mark.parametrize("scored", Scored)
def test_equals_a_naive_reference(context, scored, model, text):
    """Chunks side by side, one by one, and cut into batches."""
    result = measure_perplexity(
        model, text, context=context, scored=scored, max_chunks=2, threads=1
    )
    nlls = naive(model, text, context, context // 2 if scored is Scored.HALF else 0, 2)
    assert result.tokens == nlls.size
    assert result.chunks == 2
    assert result.nll == pytest.approx(nlls.mean(), rel=2e-4)
    stderr = nlls.std(ddof=1) / np.sqrt(nlls.size) * np.exp(nlls.mean())
    assert result.stderr == pytest.approx(stderr, rel=1e-2)
    assert result.perplexity == pytest.approx(np.exp(result.nll))


def test_log_likelihoods_are_exact_and_thread_independent():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 8, (37, 5003)).astype(np.float32)
    logits[3] += 1e4
    targets = rng.integers(0, 5003, 37).astype(np.int32)
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(37), targets]
    with ThreadPoolExecutor(5) as pool:
        results = [negative_log_likelihoods(logits, targets, pool, n) for n in (1, 2, 5)]
    assert np.allclose(results[0], expected, rtol=1e-6, atol=1e-5)
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    with ThreadPoolExecutor(1) as pool:
        nlls = negative_log_likelihoods(
            np.full((10, 777), -3.5, np.float32), np.arange(10, dtype=np.int32), pool, 1
        )
    perplexity, stderr = summarize(nlls)
    assert perplexity == pytest.approx(777)
    assert stderr < 1e-4


def test_chunks_drop_the_rest_and_put_bos_first():
    tokens = np.arange(1, 12, dtype=np.int32)
    assert split_chunks(tokens, 4, None, None).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert split_chunks(tokens, 4, 1, 99).tolist() == [[99, 2, 3, 4]]
    assert tokens[0] == 1
    with pytest.raises(UsageError, match="11 tokens, less than one chunk of 12"):
        split_chunks(tokens, 12, None, None)


@pytest.mark.parametrize("needed", [1, 40, 300, 10**6])
def test_the_beginning_of_a_text_has_the_tokens_of_the_whole(needed, model):
    """Cut between lines, wherever blanks, blank lines, carriage returns and markup stand there."""
    lines = ["One.", "  two ", "", " \t", "\tthree!\r", "\r", "\u3000\u56db", "\u4e94", "\x1c six"]
    lines += ["\u0301 seven", "<|im_end|>", "'s", "10", "\u2028 eleven", "\x0b"]
    rng = np.random.default_rng(1)
    text = "\n".join(lines[i] for i in rng.integers(0, len(lines), 2000))
    whole = model.tokenize(text, parse_special=True)
    read: list[str] = []

    def encode(part: str) -> np.ndarray:
        read.append(part)
        return model.tokenize(part, parse_special=True)

    tokens = encode_beginning(text, needed, encode)
    np.testing.assert_array_equal(tokens, whole[: len(tokens)])
    assert len(tokens) >= min(needed, len(whole))
    assert (len(read[-1]) < len(text) / 2) == (needed < 1000)
    np.testing.assert_array_equal(encode_beginning(text, None, encode), whole)


def test_without_a_limit_all_of_the_text_is_scored(model, text):
    few = text[:3000]
    count = len(model.tokenize(few, parse_special=True))
    before = perf_counter()
    result = measure_perplexity(model, few, context=64, threads=1)
    assert 0 < result.seconds < perf_counter() - before
    assert result.chunks == count // 64
    assert result.tokens == count // 64 * 31


@pytest.mark.parametrize("needed", [1, 40, 90])
def test_a_text_of_few_tokens_is_read_as_far_as_it_takes(needed):
    """One token for each of a hundred lines of 1000 characters."""
    text = ("x" * 999 + "\n") * 100
    read: list[int] = []

    def encode(part: str) -> np.ndarray:
        read.append(len(part))
        return np.arange(part.count("\n"))

    assert needed < len(encode_beginning(text, needed, encode)) <= 2 * needed + 2
    assert read == sorted(read)


def test_a_coarse_cache_costs_a_little(model, text):
    fine, coarse = (
        measure_perplexity(
            model, text, context=256, max_chunks=2, threads=1, key_type=kind, value_type=kind
        )
        for kind in ("f16", "q4_0")
    )
    assert coarse.key_type == "Q4_0"
    assert fine.perplexity != coarse.perplexity == pytest.approx(fine.perplexity, rel=0.1)


def test_text_files(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"two\nlines\n\n")
    assert read_as_llama(path) == "two\nlines\n"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="no UTF-8"):
        read_as_llama(path)
    with pytest.raises(UsageError, match="Can't read"):
        read_as_llama(tmp_path / "none")


@pytest.mark.peer
@pytest.mark.parametrize("context", [128, 512, 1024])
def test_equals_llama_perplexity(context, model, text, llama_tools, tmp_path):
    path = tmp_path / "text"
    path.write_text(text)
    command = [
        llama_tools / "llama-perplexity", "-m", model.path, "-f", path,
        "-c", str(context), "-t", "1", "-b", str(max(512, context)),
    ]  # fmt: skip
    run = subprocess.run(
        [*command, *(["--no-repack"] if has_amx() else [])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", run.stdout + run.stderr)
    assert found is not None
    ours: PerplexityResult = measure_perplexity(model, text, context=context, threads=1)
    assert ours.perplexity == pytest.approx(float(found[1]), rel=1e-4)
    assert ours.stderr == pytest.approx(float(found[2]), rel=1e-3)
