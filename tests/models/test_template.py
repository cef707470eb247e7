"""The chat template renderer against transformers' own, and against hostile templates."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from qwen3q.errors import ModelError
from qwen3q.models import template as template_module
from qwen3q.models.template import ChatTemplate
from qwen3q.models.tokenizer import read_tokenizer

# what Qwen's templates use: tools as JSON, namespaces, reverse loops, thinking split off, macros
EVERYTHING = """\
{%- macro turn(role, text) -%}
{{- '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>\\n' -}}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last_query=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{%- continue %}{%- endif %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- set thoughts = '' %}
    {%- if message.reasoning_content is string %}
        {%- set thoughts = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last_query and thoughts %}
        {%- generation %}
        {%- set thoughts = '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' %}
        {{- turn('assistant', thoughts + content) }}
        {%- endgeneration %}
    {%- else %}
        {{- turn(message.role, content) }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' ~ (call.function.arguments | tojson(indent=2)) ~ '</tool_call>\\n' }}
    {%- endfor %}
{%- endfor %}
  {% if date is defined %}
on {{ strftime_now('%Y') }}
  {% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
CHAT = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "Wie geht's? \u00fc\U0001f600"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGut."},
    {"role": "user", "content": "<b>Again</b>"},
    {"role": "assistant", "content": "", "reasoning_content": "\nweather\n",
     "tool_calls": [{"function": {"name": "w", "arguments": {"at": "K\u00f6ln", "n": [1, 2.5]}}}]},
    {"role": "skip", "content": "never"},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "w", "description": "<a> & 'b' \u00e9"}}]


def by_transformers(source: str, chat: list[dict], **options: object) -> str:
    rendered, _ = render_jinja_template([chat], chat_template=source, **options)
    return rendered[0]


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(thinking, tools, prompt):
    options = {} if thinking is None else {"enable_thinking": thinking}
    expected = by_transformers(
        EVERYTHING, CHAT, tools=tools, add_generation_prompt=prompt, date="x", **options
    )
    ours = ChatTemplate(EVERYTHING).render(
        CHAT, tools=tools, add_generation_prompt=prompt, enable_thinking=thinking, date="x"
    )
    assert ours == expected
    assert "<tools>" in ours or tools is None
    assert "never" not in ours


@pytest.mark.parametrize("thinking", [True, False])
def test_demo_template_as_transformers(demo_folder, thinking):
    source = read_tokenizer(demo_folder).chat_template
    chat = CHAT[1:4]
    expected = by_transformers(source, chat, add_generation_prompt=True, enable_thinking=thinking)
    assert ChatTemplate(source).render(chat, enable_thinking=thinking) == expected
    assert expected.endswith("</think>\n\n") is not thinking


def test_the_template_can_refuse():
    template = ChatTemplate("{{ raise_exception('Roles must alternate.') }}")
    with pytest.raises(ModelError, match="Roles must alternate"):
        template.render(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace(_Namespace__attrs=1) %}",
        "{% include '/etc/passwd' %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ range(10000000000) | list }}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_or_broken_templates_are_refused(source, monkeypatch):
    monkeypatch.setattr(template_module, "MAX_STEPS", 5000)
    with pytest.raises(ModelError, match="chat template fails"):
        ChatTemplate(source).render(CHAT)


def test_output_is_bounded(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_RENDERED_CHARS", 1000)
    with pytest.raises(ModelError, match="more than 1000 characters"):
        ChatTemplate("{% for i in range(99) %}{{ 'x' * 100 }}{% endfor %}").render(CHAT)


@pytest.mark.parametrize("source", ["{% if %}", "x" * (1 << 19 | 1), "{{" + "(" * 5000])
def test_a_template_that_does_not_compile_is_named(source):
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(source)


def test_steps_are_counted_per_rendering(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_STEPS", 1000)
    template = ChatTemplate("{% for i in range(900) %}{% endfor %}ok")
    assert [template.render([]) for _ in range(3)] == ["ok"] * 3
    with pytest.raises(ModelError, match="more than 1000 steps"):
        ChatTemplate("{% for i in range(1001) %}{% endfor %}").render([])
