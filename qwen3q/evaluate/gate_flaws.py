"""What can be wrong with a reply, apart from its answer."""

from __future__ import annotations

import unicodedata
from enum import StrEnum

from qwen3q.evaluate.tasks import THINK_END, THINK_START

_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "ARABIC", "HEBREW", "THAI")


class Mode(StrEnum):
    """Whether the chat template asks for thinking."""

    THINKING = "thinking"
    PLAIN = "plain"


class Flaw(StrEnum):
    """What can be wrong with a reply, apart from its answer.

    UNOPENED: no ``<think>`` although thinking was asked for. UNCLOSED: it ends within its
    thinking. LEAKED: markup of thinking in the answer. EMPTY: no answer. ENDLESS: cut off at the
    token limit. LANGUAGE: letters of a script that the question has none of.
    """

    UNOPENED = "unopened"
    UNCLOSED = "unclosed"
    LEAKED = "leaked"
    EMPTY = "empty"
    ENDLESS = "endless"
    LANGUAGE = "language"


def find_flaws(question: str, reply: str, mode: Mode, *, ended: bool) -> frozenset[Flaw]:
    """What is wrong with a reply.

    Args:
        ended: it ended by itself, not at the token limit.
    """
    flaws = set() if ended else {Flaw.ENDLESS}
    opened = reply.lstrip().startswith(THINK_START)
    closed = THINK_END in reply
    said = reply.partition(THINK_END)[2] if opened else reply
    if mode is Mode.THINKING and not opened:
        flaws.add(Flaw.UNOPENED)
    if opened and not closed and ended:
        flaws.add(Flaw.UNCLOSED)
    leaked = THINK_START in said or THINK_END in said
    if leaked or (mode is Mode.PLAIN and opened):
        flaws.add(Flaw.LEAKED)
    if not said.strip() and ended:
        flaws.add(Flaw.EMPTY)
    if scripts(reply) - scripts(question):
        flaws.add(Flaw.LANGUAGE)
    return frozenset(flaws)


def scripts(text: str) -> frozenset[str]:
    """Scripts other than Latin and Greek that ``text`` has letters of."""
    found = set()
    for letter in {c for c in text if ord(c) > 0x24F and c.isalpha()}:
        name = unicodedata.name(letter, "").partition(" ")[0]
        if name in _SCRIPTS:
            found.add(name)
    return frozenset(found)
