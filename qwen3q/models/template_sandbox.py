"""Jinja's immutable sandbox, where every value that a template makes is charged to its budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from qwen3q.models.template_bounds import (
    LEFT_OUT,
    SHARING,
    budget,
    charge_filter,
    charge_result,
    check_filter,
    check_format_field,
    check_method,
    check_operation,
)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """As transformers' ``_compile_jinja_template`` sets it up, within bounds.

    Renders only while ``budget`` holds one.
    """

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=_charged_output,
        )
        self.filters["tojson"] = _tojson
        self.filters = {
            name: _bounded_filter(self, name, function)
            for name, function in self.filters.items()
            if name not in LEFT_OUT
        }
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _TemplateNamespace,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        self._count_steps(tree.find_all(nodes.For))
        self._count_steps(tree.find_all(nodes.Macro))
        self._count_steps(tree.find_all(nodes.CallBlock))
        bounded = _Bounding().visit(tree)
        assert isinstance(bounded, nodes.Template)
        return bounded

    @staticmethod
    def _count_steps(
        body_nodes: Iterable[nodes.For | nodes.Macro | nodes.CallBlock],
    ) -> None:
        """Puts a call of ``count_step`` at the head of every body."""
        for node in body_nodes:
            call = _own_call("count_step", [], node.lineno)
            node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))

    def count_step(self) -> None:
        budget.get().step()

    def concatenated(self, *parts: Any) -> str:
        """``a ~ b``."""
        limits = budget.get()
        limits.charge(sum(map(limits.size_of, parts)))
        return "".join(map(str, parts))

    def made(self, value: Any) -> Any:
        """A list, tuple or dictionary that the template writes down."""
        limits = budget.get()
        limits.charge(limits.size_of(value))
        return value

    def sliced(self, value: Any) -> Any:
        """A part of a string or list."""
        charge_result("[:]", value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        charge_result(operator, result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        text = getattr(value, "__self__", None)
        if not isinstance(text, str) or value.__name__ != "format":
            return None
        formatter = _BoundedFormatter(self)

        def bounded(*args: Any, **values: Any) -> str:
            if isinstance(text, Markup):
                raise SecurityError("escaped text has no format here")
            return formatter.vformat(text, args, values)

        return bounded

    def call(__self, __context: Context, __obj: Any, *args: Any, **options: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        if isinstance(owner, str):
            given = {name: option for name, option in options.items() if name[0] != "_"}
            check_method(__obj.__name__, owner, args, given)
        elif isinstance(__obj, BuiltinMethodType):
            if __obj.__name__ not in SHARING:
                raise SecurityError(f"templates have no {__obj.__name__} here")
            return super().call(__context, __obj, *args, **options)
        result = super().call(__context, __obj, *args, **options)
        return __self.made(result) if isinstance(result, str | list | tuple | dict) else result


class _Bounding(NodeTransformer):
    """Puts calls of the environment around what makes values without one."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _own_call("concatenated", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._made(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._made(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return (
            _own_call("sliced", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node
        )

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _own_call("made", [node], node.lineno)


def _own_call(method: str, args: list[nodes.Expr], line: int) -> nodes.Call:
    """A call of the environment, as a template's tree holds it."""
    function = nodes.EnvironmentAttribute(method, lineno=line)
    return nodes.Call(function, args, [], None, None, lineno=line)


class _BoundedFormatter(SandboxedFormatter):
    """``str.format`` whose fields are charged before they are padded."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion:
            check_format_field(value, "")
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, spec: str) -> Any:
        check_format_field(value, spec)
        return super().format_field(value, spec)


@pass_context
def _charged_output(context: Context, value: Any) -> Any:
    """What ``{{ value }}`` writes; needs the context, so that nothing is written when compiling."""
    limits = budget.get()
    limits.charge(limits.size_of(value))
    return value


def _bounded_filter(
    environment: TemplateEnvironment, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """A filter within bounds; needs the context, so that it is not called when compiling."""
    passed = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **options: Any) -> Any:
        check_filter(name, value, args, options)
        before = {"context": context, "eval_context": context.eval_ctx, "environment": environment}
        first = () if passed is None else (before[passed.name],)
        result = function(*first, value, *args, **options)
        charge_filter(name, result)
        return result

    return bounded


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
