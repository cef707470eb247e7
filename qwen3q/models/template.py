"""A model's own chat template, rendered as transformers renders it but without trusting it.

Templates come with downloaded files, so they run in Jinja's immutable sandbox, see plain data
only, and are bounded in length, in loop rounds and in what they produce. What a template pads,
replaces or joins on the way is not bounded, so a hostile one can still take time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qwen3q.errors import ModelError

NO_TEMPLATE = (
    "Quantize it again from a folder that has one: chat_template.jinja, or chat_template in "
    "tokenizer_config.json."
)
"""The next step where a model has none."""

MAX_TEMPLATE_CHARS = 1 << 19
MAX_RENDERED_CHARS = 1 << 25
MAX_STEPS = 1 << 18
"""Loop rounds and macro calls per rendering."""
_MAX_REPEAT = 1 << 20
_MAX_EXPONENT = 64

_steps: ContextVar[int] = ContextVar("steps")


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """Compiles ``source``.

        Raises:
            ModelError: too long, or no valid Jinja.
        """
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(
                f"The chat template has {len(source)} characters; at most {MAX_TEMPLATE_CHARS}."
            )
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(
                f"The chat template is no valid Jinja: line {error.lineno}: {error.message}."
            ) from None
        except RecursionError:
            raise ModelError("The chat template is nested too deeply.") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to read it.

        Args:
            messages: each with ``role`` and ``content``, and what else the template reads.
            tools: JSON schemas of functions that the model may call.
            enable_thinking: Qwen3's switch; None leaves it to the template.
            add_generation_prompt: end with the beginning of the assistant's answer.
            variables: more for the template, such as ``bos_token``.

        Raises:
            ModelError: the template refuses the conversation, fails, or exceeds a bound.
        """
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        data = _plain(
            variables
            | {
                "messages": list(messages),
                "tools": None if tools is None else list(tools),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        token = _steps.set(0)
        try:
            return _bounded_join(self._template.generate(**data))
        except jinja2.TemplateError as error:
            raise ModelError(f"The chat template fails: {error.message}.") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"The chat template fails: {error}.") from None
        except (RecursionError, MemoryError):
            raise ModelError("The chat template fails: it needs too much memory.") from None
        finally:
            _steps.reset(token)


def _bounded_join(pieces: Iterable[str]) -> str:
    out, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise jinja2.TemplateRuntimeError(
                f"it writes more than {MAX_RENDERED_CHARS} characters"
            )
        out.append(piece)
    return "".join(out)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, counting steps and refusing products that fill the memory at once."""

    intercepted_binops = frozenset(["*", "**"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._count_steps(tree.find_all(nodes.For))
        self._count_steps(tree.find_all(nodes.Macro))
        self._count_steps(tree.find_all(nodes.CallBlock))
        return tree

    @staticmethod
    def _count_steps(
        body_nodes: Iterable[nodes.For | nodes.Macro | nodes.CallBlock],
    ) -> None:
        """Puts a call of ``count_step`` at the head of every body."""
        for node in body_nodes:
            counter = nodes.EnvironmentAttribute("count_step", lineno=node.lineno)
            call = nodes.Call(counter, [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))

    def count_step(self) -> None:
        steps = _steps.get() + 1
        if steps > MAX_STEPS:
            raise jinja2.TemplateRuntimeError(f"it runs more than {MAX_STEPS} steps")
        _steps.set(steps)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(left) > _MAX_REPEAT or abs(right) > _MAX_EXPONENT):
            raise SecurityError(f"{left} ** {right} is too large")
        if operator == "*":
            for thing, count in ((left, right), (right, left)):
                if hasattr(thing, "__len__") and len(thing) * count > _MAX_REPEAT:
                    raise SecurityError(f"a repetition of {count} is too long")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's tokens for training; here it is passed through."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateNamespace(Namespace):
    """Jinja's ``namespace`` without underscored names, which would reach Python's internals."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        for name in dict(*rest, **values):
            _refuse_private(name)
        Namespace.__init__(self, *rest, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _environment() -> _Environment:
    """As transformers' ``_compile_jinja_template`` sets it up."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    del environment.globals["lipsum"]
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": _TemplateNamespace,
    }
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message).rstrip("."))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone, so that a template sees no methods of ours."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    raise ModelError(f"A chat message holds a {type(value).__name__}, which is no JSON.")
