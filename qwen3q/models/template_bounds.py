"""Bounds on what a chat template may make: sizes that are known before an operation is done.

A template has a budget of characters. Every value that it makes is charged to it, and what can make
much out of little (padding, repetition, replacement, formats) is sized first. So memory is bounded
whatever operations are combined.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized, ValuesView
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

MAX_STEPS = 1 << 18
"""Loop rounds and macro calls per rendering."""
MAX_CHARS = 1 << 24
MAX_TIMES_INPUT = 256
"""Characters that a rendering may make: so many, and so many times the conversation's."""
MAX_SECONDS = 60.0
"""Of processor time per rendering."""

_MAX_BASE, _MAX_EXPONENT = 1 << 20, 64
_MAX_BITS = 1 << 14
_MAX_INDENT = 16
_PER_ITEM = 64
"""Characters that an element of a list counts: a string of one letter takes as much memory."""

_NUMBERS = re.compile(r"\d+")
_CONTAINERS = (list, tuple, AbstractSet, ValuesView)


class Budget:
    """What one rendering may still make, and how long."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.steps = 0
        self.most = MAX_CHARS
        self.most += MAX_TIMES_INPUT * self.size_of(data)
        self.left = self.most
        self.start = time.thread_time()

    def step(self) -> None:
        """Counts a loop round or a macro call."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TemplateRuntimeError(f"it runs more than {MAX_STEPS} steps")
        if time.thread_time() - self.start > MAX_SECONDS:
            raise TemplateRuntimeError(f"it takes more than {MAX_SECONDS:g} seconds")

    def charge(self, chars: int) -> None:
        """Takes so many from the budget."""
        self.left -= max(chars, 0)
        if self.left < 0:
            raise TemplateRuntimeError(f"it makes more than {self.most} characters")

    def check(self, chars: int) -> None:
        """Refuses what would not fit the budget."""
        if chars > self.left:
            raise TemplateRuntimeError(f"it makes more than {self.most} characters")

    def size_of(self, value: Any) -> int:
        """Characters of a value written out, what it holds several times counted as often; where
        they are more than the budget, just some more than that."""
        total, depth_first = 0, [value]
        most = getattr(self, "left", 1 << 40)
        while depth_first and total <= most:
            item = depth_first.pop()
            if isinstance(item, Namespace):
                item = item._Namespace__attrs
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, int):
                total += 1 + item.bit_length() // 8
            elif isinstance(item, Mapping):
                total += _PER_ITEM * len(item)
                depth_first += [*item.keys(), *item.values()]
            elif isinstance(item, _CONTAINERS):
                total += _PER_ITEM * len(item)
                depth_first += item
            else:
                total += 8
        return total


budget: ContextVar[Budget] = ContextVar("budget")
"""Of the rendering at hand."""


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation between two values whose result is too large, and charges what a
    repetition holds."""
    if operator == "**" and (abs(left) > _MAX_BASE or abs(right) > _MAX_EXPONENT):
        raise SecurityError(f"{left} ** {right} is too large")
    if operator == "*":
        for thing, count in ((left, right), (right, left)):
            if hasattr(thing, "__len__") and isinstance(count, int):
                budget.get().charge(budget.get().size_of(thing) * count)
    if operator == "%" and isinstance(left, str):
        budget.get().check(_printf_chars(left, right))


def charge_result(operator: str, result: Any) -> None:
    """Charges what an operation between two values made; lists share what they hold."""
    if isinstance(result, int) and result.bit_length() > _MAX_BITS:
        raise SecurityError(f"a number of {result.bit_length()} bits is too large")
    if isinstance(result, list | tuple):
        budget.get().charge(_PER_ITEM * len(result))
    elif isinstance(result, str):
        budget.get().charge(len(result))


def check_filter(name: str, value: Any, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuses a filter whose result is too large, and charges what it writes out or copies."""
    limits = budget.get()
    if name not in _LOOKING:
        limits.charge(sum(map(limits.size_of, (value, args, options))))
    if name in _FILTERS:
        limits.check(_FILTERS[name](value, *args, **options))


def charge_filter(name: str, result: Any) -> None:
    """Charges what a filter made; lists share what they hold."""
    if isinstance(result, list | tuple):
        budget.get().charge(_PER_ITEM * len(result))
    elif isinstance(result, str) and name not in _LOOKING:
        budget.get().charge(len(result))


def check_method(name: str, text: str, args: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuses a method of a string that is not known to be harmless or makes too much."""
    if name in _METHODS:
        budget.get().check(_METHODS[name](text, *args, **options))
    elif name not in _HARMLESS:
        raise SecurityError(f"templates have no str.{name} here")


def check_format_field(value: Any, spec: str) -> None:
    """Charges a field of ``str.format``."""
    limits = budget.get()
    limits.charge(limits.size_of(value) + _widths(spec))


def _printf_chars(text: str, values: Any) -> int:
    """Characters of ``text % values`` at most."""
    parts = values if isinstance(values, tuple) else (values,)
    if isinstance(values, Mapping):
        parts = tuple(values.values())
    widest = max((budget.get().size_of(part) for part in parts), default=0)
    stars = sum(abs(part) for part in parts if isinstance(part, int)) if "*" in text else 0
    return len(text) + _widths(text) + stars + text.count("%") * (widest + 32)


def _widths(spec: str) -> int:
    """What the numbers of a format pad to, at most."""
    return sum(int(number[:18]) for number in _NUMBERS.findall(spec))


def _format(text: Any, *args: Any, **options: Any) -> int:
    return _printf_chars(str(text), options or args)


def _center(text: Any, width: int = 80) -> int:
    return width


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    each = len(width) if isinstance(width, str) else width
    return each * (1 + len(str(text).splitlines()))


def _join(values: Any, between: Any = "", attribute: Any = None) -> int:
    return len(str(between)) * (len(values) if isinstance(values, Sized) else 0)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    found = str(text).count(str(old))
    return len(str(new)) * (found if count is None or count < 0 else min(found, count))


def _round(number: Any, precision: int = 0, method: str = "common") -> int:
    if abs(precision) > _MAX_EXPONENT:
        raise SecurityError(f"rounding to {precision} digits is too much")
    return 0


def _sum(values: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise SecurityError("sum is for numbers")
    return 0


def _tojson(value: Any, *args: Any, indent: Any = None, separators: Any = None, **more: Any) -> int:
    if args:
        raise SecurityError("options of tojson have names")
    width = len(indent) if isinstance(indent, str) else indent or 0
    between = sum(map(len, separators or ()))
    if width > _MAX_INDENT or between > _MAX_INDENT:
        raise SecurityError(
            f"indent and separators of tojson have at most {_MAX_INDENT} characters"
        )
    return (width * _depth(value) + between) * budget.get().size_of(value) // _PER_ITEM


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list | tuple) else 0


def _letters(value: Any, *args: Any, **options: Any) -> int:
    """A string of which a list is made, letter by letter."""
    return _PER_ITEM * len(value) if isinstance(value, str) else 0


def _pad(text: str, width: int, fill: str = " ") -> int:
    return width


def _expandtabs(text: str, tabsize: int = 8) -> int:
    return text.count("\t") * tabsize


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = text.count(sep) if sep else len(text) // 2
    return _PER_ITEM * (pieces if maxsplit < 0 else min(pieces, maxsplit))


def _splitlines(text: str, keepends: bool = False) -> int:
    return _PER_ITEM * text.count("\n")


def _method_join(text: str, values: Iterable[str]) -> int:
    return len(text) * (len(values) if isinstance(values, Sized) else 0) + budget.get().size_of(
        values
    )


_FILTERS: dict[str, Callable[..., int]] = {
    "center": _center, "format": _format, "groupby": _letters, "indent": _indent, "join": _join,
    "list": _letters, "replace": _replace, "round": _round, "sort": _letters, "sum": _sum,
    "tojson": _tojson, "unique": _letters,
}  # fmt: skip
"""Characters that a filter's result has at most, beside those of its value."""

_LOOKING = frozenset(
    {
        "abs", "attr", "count", "d", "default", "dictsort", "first", "float", "groupby", "int",
        "items", "last", "length", "list", "map", "max", "min", "random", "reject", "rejectattr",
        "round", "select", "selectattr", "sort", "sum", "unique",
    }
)  # fmt: skip
"""Filters that copy no text: what they return is there already, or a list of that."""

_METHODS: dict[str, Callable[..., int]] = {
    "center": _pad, "expandtabs": _expandtabs, "join": _method_join, "ljust": _pad,
    "replace": _replace, "rjust": _pad, "rsplit": _split, "split": _split,
    "splitlines": _splitlines, "zfill": _pad,
}  # fmt: skip

_HARMLESS = frozenset(
    {
        "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
        "isspace", "istitle", "isupper", "lower", "lstrip", "partition", "removeprefix",
        "removesuffix", "rfind", "rindex", "rpartition", "rstrip", "startswith", "strip",
        "swapcase", "title", "upper",
    }
)  # fmt: skip
"""Methods of strings whose results are about as long as the string."""

SHARING = frozenset({"copy", "count", "get", "index", "items", "keys", "values"})
"""Methods of lists and dictionaries; what they return is there already."""

LEFT_OUT = (
    "batch", "pprint", "slice", "striptags", "urlize", "wordwrap", "xmlattr",
)  # fmt: skip
"""Filters for web pages and tables, which no chat template needs."""
