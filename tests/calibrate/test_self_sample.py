"""Text that a model writes for itself, by a scripted model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwen3q.calibrate.rows import encode
from qwen3q.calibrate.self_sample import (
    SampleRequest,
    context_needed,
    self_calibration,
    user_turn_prefix,
    word_tokens,
)
from qwen3q.errors import UsageError
from qwen3q.models.source import resolve
from qwen3q.models.template import ChatTemplate
from qwen3q.models.tokenizer import load_tokenizer, read_tokenizer

LENGTH = 64


@pytest.fixture(scope="module")
def demo():
    source = resolve("demo")
    template = read_tokenizer(source.folder).chat_template
    assert template is not None
    return source, load_tokenizer(source.folder), ChatTemplate(template)


class Scripted:
    """Answers every request with the same words, and remembers the requests."""

    def __init__(self, tokenizer, words: str) -> None:
        self.tokens = encode(tokenizer, words)
        self.requests: list[SampleRequest] = []

    def __call__(self, request: SampleRequest) -> Sequence[int]:
        self.requests.append(request)
        return self.tokens[: request.max_tokens]


def test_both_modes_and_raw_text(demo):
    _, tokenizer, template = demo
    model = Scripted(tokenizer, "Seven sheep sleep.")
    made = self_calibration(model, tokenizer, template, length=LENGTH, rows=12)
    text = tokenizer.decode([t for row in made.rows for t in row], skip_special_tokens=False)
    question = "<|im_start|>user\nSeven sheep sleep.<|im_end|>\n<|im_start|>assistant\n"
    quiet = question + "<think>\n\n</think>\n\nSeven sheep sleep.<|im_end|>"
    loud = question + "Seven sheep sleep.<|im_end|>"
    assert text.count(quiet) > 3
    assert abs(text.count(quiet) - text.count(loud)) <= 2
    assert len(made.rows) == 12
    assert {len(row) for row in made.rows} == {LENGTH}
    raw = [r for r in model.requests if len(r.prompt) == 1]
    assert len({r.prompt for r in raw}) == len(raw) > 1
    assert len({r.seed for r in model.requests}) == len(model.requests)


def test_one_mode_only(demo):
    _, tokenizer, template = demo
    for thinking in (True, False):
        model = Scripted(tokenizer, "Seven sheep sleep.")
        made = self_calibration(
            model, tokenizer, template, length=LENGTH, rows=8, thinking=thinking
        )
        text = tokenizer.decode([t for row in made.rows for t in row], skip_special_tokens=False)
        assert (text.count("</think>") > 3) == (not thinking)


THOUGHT, UNTHOUGHT = (0.6, 0.95, 20), (0.7, 0.8, 20)
"""Temperature, top-p and top-k that the model cards of Qwen3 and its 2507 releases recommend."""


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        ("{{ '<think>' if enable_thinking else '<think></think>' }}", {THOUGHT, UNTHOUGHT}),
        ("<think>", {THOUGHT}),
        ("", {UNTHOUGHT}),
    ],
    ids=["hybrid", "thinking", "instruct"],
)
def test_answers_are_sampled_as_the_model_card_says(demo, opening, expected):
    _, tokenizer, _ = demo
    turns = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    source = (
        turns + "{% if add_generation_prompt %}<|im_start|>assistant\n" + opening + "{% endif %}"
    )
    model = Scripted(tokenizer, "Seven sheep sleep.")
    self_calibration(model, tokenizer, ChatTemplate(source), length=LENGTH, rows=8)
    answers = [r for r in model.requests if r.max_tokens == 2 * LENGTH]
    assert {(r.temperature, r.top_p, r.top_k) for r in answers} == expected


def test_requests_stay_within_the_context(demo):
    """Also with the longest question, thought about until the limit."""
    _, tokenizer, template = demo
    rambling = encode(tokenizer, "word " * 500)
    requests: list[SampleRequest] = []

    def ramble(request: SampleRequest) -> Sequence[int]:
        requests.append(request)
        is_answer = request.max_tokens > LENGTH
        return rambling[: request.max_tokens if is_answer else request.max_tokens - 1]

    self_calibration(ramble, tokenizer, template, length=LENGTH, rows=24)
    assert {request.max_tokens for request in requests} == {LENGTH - 1, LENGTH, 2 * LENGTH}
    longest = max(len(request.prompt) + request.max_tokens for request in requests)
    assert 3 * LENGTH < longest <= context_needed(LENGTH)


def test_model_without_words_is_refused(demo):
    _, tokenizer, template = demo
    with pytest.raises(UsageError, match="writes no text of its own"):
        self_calibration(lambda _: [], tokenizer, template, length=LENGTH, rows=4)


def test_same_seed_same_requests(demo):
    _, tokenizer, template = demo
    seen = []
    for seed in (1, 1, 2):
        model = Scripted(tokenizer, "Seven sheep sleep.")
        self_calibration(model, tokenizer, template, length=LENGTH, rows=3, seed=seed)
        seen.append(model.requests)
    assert seen[0] == seen[1] != seen[2]


def test_user_turn_prefix_keeps_a_default_system_prompt():
    source = (
        "<|im_start|>system\nYou are kind.<|im_end|>\n{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    prefix = "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\n"
    assert user_turn_prefix(ChatTemplate(source)) == prefix


def test_word_tokens_are_words(demo):
    _, tokenizer, _ = demo
    words = [tokenizer.decode([token]) for token in word_tokens(tokenizer)]
    assert len(words) > 1000
    assert all(word.strip().isalpha() for word in words)
    assert not {"<think>", "<|im_end|>"} & set(words)
