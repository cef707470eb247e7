"""The chat template renderer against transformers' own, and against hostile templates."""

from __future__ import annotations

import tracemalloc

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from qwen3q.errors import ModelError
from qwen3q.models import template as template_module
from qwen3q.models import template_bounds
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
    monkeypatch.setattr(template_bounds, "MAX_STEPS", 5000)
    with pytest.raises(ModelError, match="chat template fails"):
        ChatTemplate(source).render(CHAT)


SHORT = "{% set s = 'abcdefgh' * 100000 %}"
DOUBLED = "{% set x = x ~ x %}", "{% set x = x + x %}", "{% set x %}{{ x }}{{ x }}{% endset %}"
AMPLIFIERS = {
    "format, padded": "{{ '%1000000000s' | format('a') }}",
    "format, padded by an argument": "{{ '%*d' | format(1000000000, 1) }}",
    "format, many times": SHORT + "{{ ('%(a)s' * 9999) | format(a=s) }}",
    "percent": "{{ '%1000000000s' % 'a' }}",
    "percent, digits": "{{ '%.1000000000f' % 1.5 }}",
    "str.format": "{{ '{:>1000000000}'.format('a') }}",
    "str.format, nested": "{{ '{:{w}}'.format('a', w=1000000000) }}",
    "str.format, many times": SHORT + "{{ ('{0}' * 9999).format(s) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "str.center of escaped text": "{{ ('a' | safe).center(1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "center in map": "{{ ['a'] | map('center', 1000000000) | list }}",
    "expandtabs": "{{ '\\t\\t'.expandtabs(1000000000) }}",
    "times": "{{ 'a' * 1000000000 }}",
    "times a list": "{{ [none] * 100000000 }}",
    "indent": "{{ ('a\\n' * 100000) | indent(100000) }}",
    "replace": SHORT + "{{ s.replace('a', s) }}",
    "replace as a filter": SHORT + "{{ s | replace('', s) }}",
    "join": SHORT + "{{ range(9999) | join(s) }}",
    "str.join": SHORT + "{{ s.join(['a'] * 9999) }}",
    "join of one text": SHORT + "{{ ([s] * 9999) | join }}",
    "concatenation": SHORT + "{% set t = " + " ~ ".join(["s"] * 2000) + " %}",
    "lists in lists": "{% set x = ['a'] %}" + "{% set x = [x, x] %}" * 40 + "{{ x }}",
    "lists in lists, compared": "{% set x = 0 %}{% set y = 0 %}"
    + "{% set x = [x, x] %}{% set y = [y, y] %}" * 40 + "{{ x == y }}",
    "doubled in a list": "{% set x = ['a'] %}" + "{% set x = x + x %}" * 40 + "{{ x }}",
    "lists in dictionaries": "{% set x = 'a' %}"
    + "{% set x = dict(a=x, b=x) %}" * 40 + "{{ x | tojson }}",
    "JSON, indented": "{{ range(99999) | list | tojson(indent=100000) }}",
    "a namespace that holds itself": "{% set n = namespace() %}{% set n.a = [n, n] %}{{ n }}",
    "a sum of lists": "{{ ([[1] * 9999] * 9999) | sum(start=[]) }}",
    "large numbers": "{% set x = 3 %}" + "{% set x = x * x %}" * 40 + "{{ x % 7 }}",
    "rounded": "{{ 1 | round(100000000, 'ceil') }}",
    "bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "a table": "{{ ''.maketrans('a' * 1000000, 'b' * 1000000) }}",
    "macros": SHORT + "{% macro m() %}" + "{{ s }}" * 2000 + "{% endmacro %}{% set t = m() %}",
    "kept in a loop": SHORT + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [s ~ i] %}{% endfor %}",
    **{f"doubled: {step}": "{% set x = 'ab' %}" + step * 40 for step in DOUBLED},
}  # fmt: skip


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_little_that_makes_much_is_refused_before_it_is_there(name):
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="chat template") as refused:
            ChatTemplate(AMPLIFIERS[name]).render(CHAT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 << 20
    assert "needs too much memory" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_a_template_that_takes_long_is_ended(monkeypatch):
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 0.2)
    slow = "{% set x = range(99999) | list %}{% for i in x %}{{ -1 in x }}{% endfor %}"
    with pytest.raises(ModelError, match=r"more than 0\.2 seconds"):
        ChatTemplate(slow).render(CHAT)


def test_long_conversations_are_within_the_bounds():
    """A thousand turns and a page of a million letters, as transformers renders them."""
    turns = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": f"{i} " * 200}
        for i in range(1000)
    ]
    for chat in (turns, [{"role": "user", "content": "ab c\n" * 2_000_000}]):
        assert ChatTemplate(EVERYTHING).render(chat, tools=TOOLS) == by_transformers(
            EVERYTHING, chat, tools=TOOLS, add_generation_prompt=True
        )


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' ~ 1 ~ none ~ nothing ~ 1.5 ~ [1, 'b'] }}",
        "{{ '%s of %03d' | format('a', 7) }}{{ '%s' % 'b' }}{{ '{:>5}|{!r}'.format(1, 'c') }}",
        "{{ (messages | map(attribute='role') | list | unique | sort)[1:] }}",
        "{{ messages[1:][0].content[::-1] | upper | trim | replace('G', 'x') }}",
        "{{ {'a': (1, 2), 'b': [none, true]} | tojson(indent=2, separators=(',', ': ')) }}",
        "{{ 'a,b,,c'.split(',', 2) | join('; ') }}{{ '-'.join(['x', 'y']) }}{{ 'x'.ljust(4) }}|",
        "{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}{{ [1, 2] + [3] }}",
        "{% set ns = namespace(n=1, s='') %}{% set ns.s = ns.s + 'x' * 3 %}{{ ns.s ~ ns.n // 2 }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
        "{{ messages | groupby('role') | length }}{{ '<a>' | escape }}{{ '&' | safe }}",
        "{{ 'ab' | indent(3, first=true) }}{{ 2.345 | round(1) }}{{ [1, 2] | sum }}",
        "{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x %}q{{ 1 }}{% endset %}{{ x }}",
        "{{ dict(a=1) }}{{ 'b' | center(5) }}",
        "{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m('a') %}in{% endcall %}",
    ],
)
def test_what_templates_use_is_rendered_as_transformers_does(source):
    assert ChatTemplate(source).render(CHAT) == by_transformers(
        source, CHAT, add_generation_prompt=True
    )


def test_output_is_bounded(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_RENDERED_CHARS", 1000)
    with pytest.raises(ModelError, match="more than 1000 characters"):
        ChatTemplate("{% for i in range(99) %}{{ 'x' * 100 }}{% endfor %}").render(CHAT)


@pytest.mark.parametrize("source", ["{% if %}", "x" * (1 << 19 | 1), "{{" + "(" * 5000])
def test_a_template_that_does_not_compile_is_named(source):
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(source)


def test_steps_are_counted_per_rendering(monkeypatch):
    monkeypatch.setattr(template_bounds, "MAX_STEPS", 1000)
    template = ChatTemplate("{% for i in range(900) %}{% endfor %}ok")
    assert [template.render([]) for _ in range(3)] == ["ok"] * 3
    with pytest.raises(ModelError, match="more than 1000 steps"):
        ChatTemplate("{% for i in range(1001) %}{% endfor %}").render([])
