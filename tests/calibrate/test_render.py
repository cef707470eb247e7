"""Samples through chat templates: equal to transformers' rendering, in every thinking mode."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from qwen3q.calibrate.render import (
    ThinkingMode,
    balanced_order,
    render_calibration,
    render_sample,
    thinking_mode,
)
from qwen3q.calibrate.rows import encode
from qwen3q.calibrate.samples import Sample
from qwen3q.calibrate.sets import load_set
from qwen3q.errors import ModelError, UsageError
from qwen3q.models.template import ChatTemplate
from qwen3q.models.tokenizer import load_tokenizer

TURNS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last and thinks_in_history %}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<call>' + call.function.name + (call.function.arguments | tojson) + '</call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
THINKS = "{%- set thinks_in_history = true %}"
PLAIN = "{%- set thinks_in_history = false %}" + TURNS
SWITCHED = """\
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}"""
HYBRID = THINKS + TURNS + SWITCHED
ALWAYS = THINKS + TURNS + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"

QUESTION = {"role": "user", "content": "How many?"}
THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "2 + 2"}
PLAIN_ANSWER = {"role": "assistant", "content": "Four."}
CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "legs"}}}


def render(source: str, messages: list, thinking: bool) -> str:
    template = ChatTemplate(source)
    return render_sample(
        Sample(messages=tuple(messages)), template, thinking_mode(template), thinking
    )


def transformers_text(source: str, messages: list) -> str:
    """The finished conversation as transformers renders it."""
    rendered = render_jinja_template([messages], chat_template=source, add_generation_prompt=False)
    return rendered[0][0]


@pytest.mark.parametrize("source", [HYBRID, ALWAYS])
@pytest.mark.parametrize("answer", [THOUGHT, PLAIN_ANSWER])
def test_written_by_the_model_equals_the_template(source, answer):
    """Prompt plus answer is what a template that keeps the last thinking makes of the whole."""
    messages = [{"role": "system", "content": "Be brief."}, QUESTION, answer]
    text = render(source, messages, thinking=answer is THOUGHT)
    expected = transformers_text(source, messages)
    assert text == expected
    assert ("2 + 2" in text) == (answer is THOUGHT)


def test_modes_of_templates(demo_folder):
    modes = [thinking_mode(ChatTemplate(source)) for source in (HYBRID, ALWAYS, PLAIN)]
    assert modes == [ThinkingMode.BOTH, ThinkingMode.ALWAYS, ThinkingMode.NEVER]


def test_template_that_never_thinks_gets_no_thinking():
    text = render(PLAIN, [QUESTION, THOUGHT], thinking=True)
    assert text == transformers_text(PLAIN, [QUESTION, PLAIN_ANSWER])
    assert "think" not in text


def test_template_that_drops_thinking_still_shows_it():
    """Like the demo model's: answers in the past lose their thinking, the last must not."""
    source = PLAIN + SWITCHED
    text = render(source, [QUESTION, THOUGHT], thinking=True)
    assert text.endswith("assistant\n<think>\n2 + 2\n</think>\n\nFour.<|im_end|>\n")
    text = render(source, [QUESTION, THOUGHT], thinking=False)
    assert text.endswith("assistant\n<think>\n\n</think>\n\nFour.<|im_end|>\n")


def test_calls_take_the_form_of_the_template():
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    text = render(PLAIN, [QUESTION, answer], thinking=False)
    assert text == transformers_text(PLAIN, [QUESTION, answer])
    assert '<call>count{"of": "legs"}</call>' in text


@pytest.mark.parametrize("arguments", [{"of": "legs"}, '{"of": "legs"}'])
def test_calls_without_a_form_take_qwen3s(arguments):
    """With arguments as an object, and as the JSON text that OpenAI's API gives."""
    source = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}"
    call = {"type": "function", "function": {"name": "count", "arguments": arguments}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    text = render(source, [QUESTION, answer], thinking=False)
    expected = (
        '<tool_call>\n{"name": "count", "arguments": {"of": "legs"}}\n</tool_call><|im_end|>\n'
    )
    assert text == "user:How many?|" + expected


def test_prompts_without_an_answer_alternate(demo_folder):
    tokenizer = load_tokenizer(demo_folder)
    samples = [Sample(messages=(QUESTION,))] * 40
    rows = render_calibration(
        samples, tokenizer, ChatTemplate(HYBRID), name="x", length=128, rows=2
    )
    text = tokenizer.decode([t for row in rows.rows for t in row], skip_special_tokens=False)
    closed, prompts = text.count("</think>"), text.count("How many?")
    assert prompts > 8
    assert abs(closed - prompts / 2) <= 1


def test_one_mode_only(demo_folder):
    tokenizer, template = load_tokenizer(demo_folder), ChatTemplate(HYBRID)
    samples = load_set("balanced")
    empty = "<think>\n\n</think>"
    texts = {}
    for thinking in (True, False):
        rows = render_calibration(
            samples, tokenizer, template, name="x", length=256, thinking=thinking
        )
        joined = [token for row in rows.rows for token in row]
        texts[thinking] = tokenizer.decode(joined, skip_special_tokens=False)
    assert empty not in texts[True]
    assert texts[True].count("<think>") > 20
    assert texts[False].count("<think>") == texts[False].count(empty) > 20


def test_tokens_are_transformers_tokens(demo_folder):
    tokenizer = load_tokenizer(demo_folder)
    peer = AutoTokenizer.from_pretrained(demo_folder)
    template = ChatTemplate(HYBRID)
    for sample in load_set("balanced")[::13]:
        text = render_sample(sample, template, ThinkingMode.BOTH, sample.thinks)
        assert encode(tokenizer, text) == peer(text, add_special_tokens=False).input_ids


def test_every_beginning_is_balanced():
    samples = load_set("balanced")
    ordered = balanced_order(samples, seed=3)
    assert sorted(map(id, ordered)) == sorted(map(id, samples))

    def share(part, kind):
        return sum(sample.kind == kind for sample in part) / len(part)

    for kind in ("chat", "code", "mathematics", "tools", "prose"):
        assert abs(share(ordered[:64], kind) - share(samples, kind)) < 0.08
    assert [s.id for s in balanced_order(samples, 3)] == [s.id for s in ordered]
    assert [s.id for s in balanced_order(samples, 4)] != [s.id for s in ordered]


def test_conversations_need_a_template(demo_folder):
    with pytest.raises(ModelError, match="no chat template"):
        render_calibration(
            [Sample(messages=(QUESTION, THOUGHT))],
            load_tokenizer(demo_folder),
            None,
            name="x",
            length=8,
        )


def test_too_few_tokens_name_the_numbers(demo_folder):
    with pytest.raises(UsageError, match=r"x holds \d tokens; 3 rows of 64 need 192"):
        render_calibration(
            [Sample(text="Two words.")],
            load_tokenizer(demo_folder),
            None,
            name="x",
            length=64,
            rows=3,
        )
