"""Answers made side by side are those that each prompt gets alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from continuing import continued

from qwen3q.evaluate import llama_slots, torch_backend
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.input_rounding import int8_beside_outliers
from qwen3q.evaluate.sampling import GREEDY, Prompt, Sampling, choose, uniforms
from qwen3q.evaluate.side_by_side import continue_side_by_side
from qwen3q.prefix import common_prefix

VOCABULARY = 40
STOP = frozenset({3, 17})


def table_logits(tokens: Sequence[int]) -> np.ndarray:
    """A language model that looks at everything it has read."""
    seed = hash(tuple(tokens)) % 2**32
    return np.random.default_rng(seed).normal(0, 2, VOCABULARY).astype(np.float32)


class TableSlots:
    """Counts what it reads, and refuses to step the same slot twice at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.widths: list[int] = []
        self._held: list[list[int]] = [[] for _ in range(count)]

    def held(self, slot: int) -> Sequence[int]:
        return self._held[slot]

    def read(self, slot: int, tokens: Sequence[int]) -> np.ndarray:
        self._held[slot] = list(tokens)
        return table_logits(tokens)

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        assert len(set(slots)) == len(slots) <= self.count
        self.widths.append(len(slots))
        for slot, token in zip(slots, tokens, strict=True):
            self._held[slot].append(token)
        return np.array([table_logits(self._held[slot]) for slot in slots])


def alone(prompt: Prompt, max_tokens: int) -> list[int]:
    made: list[int] = []
    for uniform in uniforms(prompt.sampling.seed):
        token = choose(table_logits([*prompt.tokens, *made]), prompt.sampling, uniform, made)
        if token in STOP:
            break
        made.append(token)
        if len(made) == max_tokens:
            break
    return made


@pytest.mark.parametrize("slots", [1, 2, 5, 64])
@pytest.mark.parametrize("count", [0, 1, 5, 30])
def test_every_prompt_gets_its_own_answer(slots, count):
    rng = np.random.default_rng(slots)
    prompts = [
        Prompt(rng.integers(0, VOCABULARY, int(rng.integers(1, 9))).tolist(), sampling)
        for seed in range(count)
        for sampling in [GREEDY if seed % 4 == 0 else Sampling(0.8, seed=seed)]
    ]
    told: dict[int, list[int]] = {}
    table = TableSlots(slots)
    made = continue_side_by_side(table, prompts, 12, STOP, told.__setitem__)
    assert made == [alone(prompt, 12) for prompt in prompts]
    assert told == dict(enumerate(made))
    if count > 2 * slots:
        assert table.widths[0] == slots


def test_steps_go_over_ascending_slots(monkeypatch):
    """llama.cpp needs a pass of its own for each descent."""
    seen = []
    table = TableSlots(6)
    step = table.step
    monkeypatch.setattr(
        table, "step", lambda slots, tokens: seen.append(slots) or step(slots, tokens)
    )
    prompts = [Prompt([seed, 9], Sampling(0.8, seed=seed)) for seed in range(30)]
    continue_side_by_side(table, prompts, 9, STOP)
    assert len({tuple(slots) for slots in seen}) > 2
    assert all(slots == sorted(slots) for slots in seen)


def test_a_prompt_may_be_held_to_fewer_tokens():
    prompts = [Prompt([seed], max_tokens=limit) for seed, limit in enumerate([1, 3, None, 99])]
    made = continue_side_by_side(TableSlots(2), prompts, 5, frozenset())
    assert list(map(len, made)) == [1, 3, 5, 5]


def test_an_outlier_of_one_sequence_leaves_the_others_as_they_are():
    x = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(0))
    alone = int8_beside_outliers(x[1:2])
    x[0, 2, 5] = 50.0
    assert torch.equal(int8_beside_outliers(x)[1:2], alone)


def test_a_prompt_goes_where_its_beginning_was_read():
    table = TableSlots(3)
    first = [Prompt([number] * 6) for number in (5, 6, 7)]
    made = continue_side_by_side(table, first, 2, frozenset())
    again = [Prompt([*p.tokens, *m]) for p, m in zip(first, made, strict=True)][::-1]
    held = {slot: list(table.held(slot)) for slot in range(3)}
    continue_side_by_side(table, again, 1, frozenset())
    for slot in range(3):
        assert common_prefix(table.held(slot), held[slot]) == len(held[slot])


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_models_answer_side_by_side_as_alone(kind, demo_ggufs, monkeypatch):
    monkeypatch.setattr(torch_backend, "_SIDE_BY_SIDE", 3)
    monkeypatch.setattr(llama_slots, "_SIDE_BY_SIDE", 3)
    rng = np.random.default_rng(6)
    prompts = [
        Prompt(
            rng.integers(0, 8000, int(rng.integers(1, 70))).tolist(),
            GREEDY if seed % 3 == 0 else Sampling(0.7, 0.9, 20, seed=seed),
        )
        for seed in range(8)
    ]
    artefact = find_artefact("demo" if kind == "folder" else str(demo_ggufs["F32"]))
    options = BackendOptions(threads=1, device="cpu")
    with open_backend(artefact, options, 128) as model:
        together = model.generate(prompts, 20, frozenset())
        again = model.generate(prompts[::-1], 20, frozenset())
    assert again == together[::-1]
    assert len({tuple(answer) for answer in together}) == len(prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        with open_backend(artefact, options, 128) as model:
            assert continued(model, prompt.tokens, 20, sampling=prompt.sampling) == answer


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_little_memory_is_one_at_a_time(kind, demo_ggufs, monkeypatch):
    monkeypatch.setattr(torch_backend, "free_on", lambda device: 1 << 10)
    monkeypatch.setattr(llama_slots, "free_memory", lambda: 1 << 10)
    artefact = find_artefact("demo" if kind == "folder" else str(demo_ggufs["F32"]))
    with open_backend(artefact, BackendOptions(threads=1, device="cpu"), 128) as model:
        made = model.generate([Prompt([700, seed]) for seed in range(3)], 4, frozenset())
        assert model._slots.count == 1
    assert list(map(len, made)) == [4] * 3
