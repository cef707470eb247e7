"""Sampling against llama.cpp's own sampler chain, draw by draw."""

from __future__ import annotations

import ctypes
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest
from continuing import continued

from qwen3q.evaluate import torch_generate
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.sampling import GREEDY, Prompt, Sampling, _likeliest, choose, uniforms
from qwen3q.evaluate.tokens import open_codec
from qwen3q.llama.capi import lib
from qwen3q.llama.sampling import Sampler, SamplerOptions

VOCABULARY = 3000


def llama_choices(rows: np.ndarray, sampling: Sampling) -> list[int]:
    """llama.cpp's tokens for rows of logits, one after another."""
    out = []
    with Sampler(SamplerOptions(**asdict(sampling)), rows.shape[1]) as sampler:
        for row in rows:
            data = (lib.llama_token_data * len(row))(
                *[lib.llama_token_data(i, float(x), 0.0) for i, x in enumerate(row)]
            )
            array = lib.llama_token_data_array(data, len(row), -1, False)
            lib.llama_sampler_apply(sampler.handle, ctypes.byref(array))
            token = array.data[array.selected].id
            lib.llama_sampler_accept(sampler.handle, token)
            out.append(token)
    return out


def our_choices(rows: np.ndarray, sampling: Sampling) -> list[int]:
    out: list[int] = []
    for row, uniform in zip(rows, uniforms(sampling.seed), strict=False):
        out.append(choose(row, sampling, uniform, out))
    return out


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(temperature=0.6, top_p=0.95, top_k=20, seed=5),
        Sampling(temperature=0.7, top_p=0.8, top_k=20, seed=6),
        Sampling(temperature=1.3, top_p=0.9, seed=7),
        Sampling(temperature=1.0, top_k=50, min_p=0.1, seed=8),
        Sampling(temperature=0.8, top_k=20, presence_penalty=1.5, seed=2**32 - 2),
    ],
)
def test_tokens_are_llama_cpps(sampling):
    rng = np.random.default_rng(3)
    # few likely tokens, so that penalties meet them again
    rows = rng.normal(0, 1, (60, VOCABULARY)).astype(np.float32)
    rows[:, :12] += rng.normal(6, 1, 12).astype(np.float32)
    made = our_choices(rows, sampling)
    assert made == llama_choices(rows, sampling)
    assert len(set(made)) > 3


@pytest.mark.parametrize("count", [1, 5, 20, 46, 47, 200, VOCABULARY])
def test_the_likeliest_of_a_vocabulary(count):
    """Against a plain stable sort, with many equal values and blocks that have none of them."""
    rng = np.random.default_rng(count)
    for spread in (2.0, 40.0, 1e6):
        row = np.round(rng.normal(0, spread, VOCABULARY)).astype(np.float32)
        row[: VOCABULARY // 2] -= 3 * spread
        plain = sorted(range(VOCABULARY), key=lambda token: -row[token])[:count]
        assert _likeliest(row, count).tolist() == plain


def test_draws_are_even():
    draws = np.array(list(islice(uniforms(1), 5000)))
    assert 0 <= draws.min() < 0.01 < 0.99 < draws.max() < 1
    np.testing.assert_allclose(np.histogram(draws, 10, (0, 1))[0], 500, atol=80)


def test_what_prompts_share_is_read_once(monkeypatch):
    """And the answers are those of a model that read every prompt from its beginning."""
    monkeypatch.setattr(torch_generate, "_PIECE", 5)
    rng = np.random.default_rng(4)
    first, second = (rng.integers(0, 8000, 40).tolist() for _ in range(2))
    prompts = [first, first, first[:30] + second[:12], first[:30], second, first[:10] + second]
    options = BackendOptions(threads=1, device="cpu")
    read: list[int] = []
    step = torch_generate.CachedModel.step

    def counting(self, ids, caches):
        read.append(ids.shape[1])
        return step(self, ids, caches)

    with open_backend(find_artefact("demo"), options, 128) as model:
        monkeypatch.setattr(torch_generate.CachedModel, "step", counting)
        answers = [continued(model, prompt, 1) for prompt in prompts]
        longer = continued(model, [*prompts[-1], *answers[-1]], 9)
    assert read[:12] == [40, 1, 5, 5, 2, 1, 40, 50, 1, *[1] * 3]
    for prompt, answer in zip(prompts, answers, strict=True):
        with open_backend(find_artefact("demo"), options, 128) as fresh:
            assert continued(fresh, prompt, 1) == answer
    with open_backend(find_artefact("demo"), options, 128) as fresh:
        assert continued(fresh, prompts[-1], 10) == [*answers[-1], *longer]


def test_samples_of_one_question_read_it_once(monkeypatch):
    prompt = np.random.default_rng(5).integers(0, 8000, 40).tolist()
    prompts = [Prompt(prompt, Sampling(1.0, seed=seed)) for seed in range(4)]
    read: list[tuple[int, ...]] = []
    step = torch_generate.CachedModel.step

    def counting(self, ids, caches):
        read.append(tuple(ids.shape))
        return step(self, ids, caches)

    with open_backend(find_artefact("demo"), BackendOptions(threads=1, device="cpu"), 128) as model:
        monkeypatch.setattr(torch_generate.CachedModel, "step", counting)
        made = model.generate(prompts, 5, frozenset())
    assert read == [(1, 40), *[(1, 1)] * 3, *[(4, 1)] * 4]
    assert len({tuple(answer) for answer in made}) == 4


def test_torch_and_llama_sample_the_same_answer(demo_ggufs):
    prompt = open_codec(find_artefact("demo")).encode("Once upon a time", parse_special=True)
    stop = frozenset([8168])
    made: dict[int, list[list[int]]] = {}
    for name in ("demo", str(demo_ggufs["F32"])):
        with open_backend(
            find_artefact(name), BackendOptions(threads=1, device="cpu"), 64
        ) as model:
            for seed in range(6):
                sampling = Sampling(temperature=0.6, top_p=0.95, top_k=20, seed=seed)
                answer = continued(model, prompt.tolist(), 24, stop, sampling)
                assert continued(model, prompt.tolist(), 24, stop, sampling) == answer
                made.setdefault(seed, []).append(answer)
    same = [torch_answer == llama_answer for torch_answer, llama_answer in made.values()]
    # llama.cpp keeps keys and values in 16 bits, which may turn a close draw
    assert sum(same) >= 5
    assert len({tuple(answer) for answer, _ in made.values()}) > 3
