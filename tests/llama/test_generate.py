"""Logits against transformers, the sampler against numpy, the loop against a naive one."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from llama_logits import logits_of

from qwen3q.errors import LlamaError, UsageError
from qwen3q.llama.capi import lib
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.generate import Generator, StopReason
from qwen3q.llama.model import LlamaModel
from qwen3q.llama.sampling import Sampler, SamplerOptions
from qwen3q.llama.text import detokenize
from qwen3q.models.source import resolve
from qwen3q.models.yarn import yarn_base
from qwen3q.plan.gguf_types import file_type
from qwen3q.quantize.run import QuantizeOptions, quantize_gguf

GREEDY = SamplerOptions(temperature=0)


def prompt_of(model, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return model.tokenize(text, parse_special=True).tolist()


@pytest.fixture
def sum_prompt(demo_model) -> list[int]:
    return prompt_of(demo_model, "What is 413 + 389?")


def test_float_logits_equal_transformers(tmp_path, demo_folder, sum_prompt):
    """Measured 5e-7; Q8_0 is 8e-3 away."""
    import torch
    from transformers import AutoModelForCausalLM

    path = quantize_gguf(resolve("demo"), [file_type("F32")], tmp_path)[0].path
    options = ContextOptions(
        context=256, threads=1, key_type="f32", value_type="f32", flash_attention=False
    )
    with LlamaModel(path) as model, LlamaContext(model, options) as context:
        ours = logits_of(context, np.array(sum_prompt, np.int32))
    reference = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.tensor([sum_prompt])).logits[0].numpy()
    assert ours.shape == expected.shape
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize("options", [
    ContextOptions(context=256, batch=7, ubatch=7, threads=1),
    ContextOptions(context=256, threads=1, flash_attention=False),
    ContextOptions(context=256, threads=1, key_type="f32", value_type="f32"),
    ContextOptions(context=256, threads=1, key_type="q8_0", value_type="q8_0"),
])  # fmt: skip
def test_settings_change_logits_only_by_rounding(options, demo_model, demo_context, sum_prompt):
    tokens = np.array(sum_prompt, np.int32)
    expected = logits_of(demo_context, tokens)
    with LlamaContext(demo_model, options) as other:
        ours = logits_of(other, tokens)
    assert np.linalg.norm(ours - expected) / np.linalg.norm(expected) < 0.02


def test_yarn_at_run_time_equals_yarn_in_the_file(tmp_path, demo_model, demo_context, sum_prompt):
    tokens = np.array(sum_prompt, np.int32)
    extended = quantize_gguf(
        resolve("demo"), [file_type("Q8_0")], tmp_path, QuantizeOptions(yarn=4.0)
    )[0].path
    options = ContextOptions(context=256, threads=1)
    with LlamaModel(extended) as model, LlamaContext(model, options) as context:
        in_file = logits_of(context, tokens)
    with LlamaContext(demo_model, replace(options, yarn=4.0)) as context:
        at_run_time = logits_of(context, tokens)
    assert np.array_equal(in_file, at_run_time)
    plain = logits_of(demo_context, tokens)
    assert np.linalg.norm(plain - in_file) / np.linalg.norm(plain) > 0.01


def test_the_hybrid_releases_extend_from_32768():
    assert yarn_base(40960) == 32768
    assert yarn_base(262144) == 262144


def test_sequences_side_by_side_do_not_see_each_other(demo_model, sum_prompt):
    options = ContextOptions(context=256, sequences=2, threads=1)
    tokens = np.array(sum_prompt, np.int32)
    n = len(tokens)
    with LlamaContext(demo_model, options) as context:
        alone = logits_of(context, tokens)
        context.clear()
        context.decode(
            np.concatenate([tokens, tokens[::-1]]),
            np.tile(np.arange(n, dtype=np.int32), 2),
            sequences=np.repeat(np.array([0, 1], np.int32), n),
            outputs=True,
        )
        assert np.allclose(context.logits()[:n], alone, atol=1e-3)


def test_greedy_equals_argmax_of_whole_rereads(demo_model, demo_context, sum_prompt):
    tokens = list(Generator(demo_context).generate(sum_prompt, GREEDY, max_tokens=12))
    naive = list(sum_prompt)
    for _ in range(12):
        naive.append(int(logits_of(demo_context, np.array(naive, np.int32))[-1].argmax()))
    assert tokens == naive[len(sum_prompt) :]


def test_the_demo_adds(demo_model, demo_context, sum_prompt):
    generator = Generator(demo_context)
    text = detokenize(demo_model, list(generator.generate(sum_prompt, GREEDY, max_tokens=200)))
    assert text.endswith("413 + 389 = 802.")
    assert generator.stop_reason is StopReason.END
    timings = generator.timings
    assert timings.prompt_tokens == len(sum_prompt)
    assert timings.generated_tokens > 50
    assert min(timings.prefill_tokens_per_second, timings.decode_tokens_per_second) > 0


def test_a_kept_cache_changes_nothing(demo_model, demo_context):
    questions = ["What is 413 + 389?", "What is 413 + 12?", "What is 413 + 389?", "Count."]
    kept = Generator(demo_context)
    for question in questions:
        prompt = prompt_of(demo_model, question)
        warm = list(kept.generate(prompt, GREEDY, max_tokens=20))
        assert kept.timings.cached_tokens > 0 or question is questions[0]
        demo_context.clear()
        cold = Generator(demo_context)
        assert list(cold.generate(prompt, GREEDY, max_tokens=20)) == warm
        kept = cold


def test_seeds_repeat_and_differ(demo_context, demo_model):
    prompt = prompt_of(demo_model, "Tell me a story.")
    generator = Generator(demo_context)

    def answer(seed: int) -> list[int]:
        hot = SamplerOptions(temperature=1.5, top_k=0, seed=seed)
        return list(generator.generate(prompt, hot, max_tokens=16))

    assert answer(1) == answer(1)
    assert len({tuple(answer(seed)) for seed in range(4)}) == 4


def test_an_answer_ends_at_max_tokens_or_the_context(demo_model, sum_prompt):
    with LlamaContext(demo_model, ContextOptions(context=256, threads=1)) as context:
        generator = Generator(context)
        assert len(list(generator.generate(sum_prompt, GREEDY, max_tokens=3))) == 3
        assert generator.stop_reason is StopReason.LENGTH
        prompt = demo_model.tokenize("and the " * 120).tolist()[:250]
        tokens = list(generator.generate(prompt, SamplerOptions(temperature=1, seed=3)))
        assert generator.stop_reason is StopReason.CONTEXT
        assert len(prompt) + len(tokens) == context.size + 1
        with pytest.raises(UsageError, match="has 256 tokens; the context holds 256"):
            list(generator.generate(prompt[:1] * 256, GREEDY))
        with pytest.raises(UsageError, match="has 300 tokens; the context holds 256"):
            list(generator.generate([1] * 300, GREEDY))
        with pytest.raises(UsageError, match="no tokens"):
            list(generator.generate([], GREEDY))


def test_stopping_in_the_middle_of_a_prompt_leaves_a_clean_cache(demo_model, demo_context):
    prompt = demo_model.tokenize("and so on " * 300).tolist()[:900]
    generator = Generator(demo_context)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 40

    assert list(generator.generate(prompt, GREEDY, max_tokens=4, stop=stop)) == []
    assert generator.stop_reason is StopReason.INTERRUPTED
    assert asked > 40
    after = list(generator.generate(prompt, GREEDY, max_tokens=4))
    demo_context.clear()
    assert after == list(Generator(demo_context).generate(prompt, GREEDY, max_tokens=4))


def test_stopping_an_answer(demo_context, sum_prompt):
    generator = Generator(demo_context)
    seen: list[int] = []
    for token in generator.generate(sum_prompt, GREEDY, stop=lambda: len(seen) >= 5):
        seen.append(token)
    assert len(seen) == 5
    assert generator.stop_reason is StopReason.INTERRUPTED


def chain_probabilities(sampling: SamplerOptions, logits: np.ndarray) -> dict[int, float]:
    """What the C chain leaves of ``logits``: token and probability."""
    count = len(logits)
    data = (lib.llama_token_data * count)()
    for i, logit in enumerate(logits):
        data[i] = lib.llama_token_data(i, float(logit), 0.0)
    array = lib.llama_token_data_array(data, count, -1, False)
    with Sampler(sampling, count) as sampler:
        lib.llama_sampler_apply(sampler.handle, ctypes.byref(array))
    return {array.data[i].id: array.data[i].p for i in range(array.size)}


@pytest.mark.parametrize(
    "sampling",
    [
        SamplerOptions(temperature=0.6, top_k=20, top_p=0.95, seed=1),
        SamplerOptions(temperature=0.7, top_k=20, top_p=0.8, seed=1),
        SamplerOptions(temperature=1.3, top_k=0, top_p=0.5, seed=1),
        SamplerOptions(temperature=1.0, top_k=50, min_p=0.2, seed=1),
        SamplerOptions(temperature=2.0, top_k=1, seed=1),
    ],
)
def test_the_chain_is_temperature_then_top_p_as_in_vllm(sampling):
    logits = np.random.default_rng(5).normal(0, 2.5, 300)
    scaled = logits / sampling.temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p)
    keep = order[: sampling.top_k or None]
    p = p[keep] / p[keep].sum()
    count = int(np.searchsorted(np.cumsum(p), sampling.top_p)) + 1
    keep, p = keep[:count], p[:count] / p[:count].sum()
    likely = p >= sampling.min_p * p.max()
    keep, p = keep[likely], p[likely] / p[likely].sum()
    ours = chain_probabilities(sampling, logits)
    assert set(ours) == set(keep.tolist())
    assert np.allclose([ours[int(token)] for token in keep], p, atol=1e-5)


def test_presence_penalty_breaks_a_loop(demo_context, demo_model):
    prompt = demo_model.tokenize("the sea and the sea and the sea and the").tolist()
    generator = Generator(demo_context)

    def variety(penalty: float) -> float:
        sampling = SamplerOptions(temperature=0, presence_penalty=penalty)
        tokens = list(generator.generate(prompt, sampling, max_tokens=60))
        return len(set(tokens)) / len(tokens)

    assert variety(2.0) > 1.5 * variety(0.0)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplerOptions(temperature=-1), "temperature -1 is outside 0 to 100"),
        (SamplerOptions(temperature=float("nan")), "temperature nan"),
        (SamplerOptions(temperature=1, top_p=1.5), "top-p 1.5"),
        (SamplerOptions(temperature=1, top_k=-2), "top-k -2"),
        (SamplerOptions(temperature=1, seed=1 << 32), "seed"),
    ],
)
def test_settings_out_of_range_are_refused(sampling, message):
    with pytest.raises(UsageError, match=message):
        Sampler(sampling, 100)


def test_a_batch_that_does_not_fit_is_refused(demo_context):
    tokens = np.zeros(demo_context.batch_size + 1, np.int32)
    with pytest.raises(LlamaError, match="does not fit"):
        demo_context.decode(tokens, np.arange(len(tokens), dtype=np.int32))


def test_more_logits_than_there_is_room_for_are_refused(demo_model):
    tokens = np.arange(3, dtype=np.int32)
    with (
        LlamaContext(demo_model, ContextOptions(context=256, threads=1, outputs=1)) as context,
        pytest.raises(LlamaError, match="3 rows of logits; the context was made for 1"),
    ):
        context.decode(tokens, tokens, outputs=True)


def test_tokens_that_do_not_exist_are_refused(demo_context):
    token = np.array([1 << 20], np.int32)
    with pytest.raises(LlamaError, match="failed to decode"):
        demo_context.decode(token, np.zeros(1, np.int32))
