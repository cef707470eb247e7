"""Generated questions with one right answer: what a quantized model must still be able to do.

The same seed gives the same questions on every machine. ``BASIC`` questions are for small models;
``STANDARD`` ones leave a large model room to fail.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from qwen3q.errors import UsageError

THINK_START = "<think>"
THINK_END = "</think>"
_NUMBER = re.compile(r"(?<![\d.])-?\d+(?!\.?\d)")
_GROUPING = re.compile(r"(?<=\d)[,\u202f\u00a0](?=\d{3}(?!\d))")
_COMPARED = re.compile(r"(?:\bthan\b|>)\W*\d[\d,]*")


class Level(StrEnum):
    """How hard the questions are."""

    BASIC = "basic"
    STANDARD = "standard"


class Kind(StrEnum):
    """What a question asks for."""

    ARITHMETIC = "arithmetic"
    ORDERING = "ordering"
    COPYING = "copying"
    NEEDLE = "needle"


@dataclass(frozen=True, slots=True)
class Task:
    """One question.

    Attributes:
        prompt: the user's message.
        answer: the right answer: a number, numbers with commas between, or text to be repeated.
    """

    kind: Kind
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Which questions are made.

    Attributes:
        each: questions per kind.
        needle_words: length of the text that a needle lies in, in words.
    """

    kinds: tuple[Kind, ...] = (Kind.ARITHMETIC, Kind.ORDERING, Kind.COPYING)
    level: Level = Level.STANDARD
    each: int = 20
    needle_words: int = 2000
    seed: int = 0


def make_tasks(options: TaskOptions | None = None) -> list[Task]:
    """Questions, kind by kind; no two of them are the same.

    Raises:
        UsageError: no such number of questions exists.
    """
    options = options or TaskOptions()
    if options.each < 1 or options.needle_words < 1:
        raise UsageError(f"{options.each} questions of {options.needle_words} words can't be made.")
    tasks: list[Task] = []
    for kind in options.kinds:
        rng = random.Random(f"{options.seed}-{kind}-{options.level}")
        made: dict[str, Task] = {}
        for _ in range(options.each * 50):
            if len(made) == options.each:
                break
            task = _MAKERS[kind](rng, options, (len(made) + 0.5) / options.each)
            made.setdefault(task.prompt, task)
        if len(made) < options.each:
            raise UsageError(f"There are fewer than {options.each} {kind} questions.")
        tasks += made.values()
    return tasks


def is_correct(task: Task, reply: str) -> bool:
    """Whether a reply gives the answer outside its thinking, closed or not.

    A number must be the reply's last one (``than 77`` in a comparison aside), a list its last
    numbers in order; text to be copied must stand in it exactly.
    """
    said = reply.rpartition(THINK_END)[2].partition(THINK_START)[0]
    if task.kind is Kind.COPYING:
        return task.answer in said
    wanted = task.answer.split(", ")
    if len(wanted) > 1:
        return re.findall(r"\d+", said)[-len(wanted) :] == wanted
    return _numbers(_COMPARED.sub("", said))[-1:] == wanted


def _numbers(text: str) -> list[str]:
    """Whole numbers, without the commas and spaces that group their digits."""
    return _NUMBER.findall(_GROUPING.sub("", text.replace("\N{MINUS SIGN}", "-")))


def _arithmetic(rng: random.Random, options: TaskOptions, share: float) -> Task:
    if options.level is Level.BASIC:
        a, b = rng.randint(10, 999), rng.randint(10, 999)
        return Task(Kind.ARITHMETIC, f"What is {a} + {b}?", str(a + b))
    a, b, c = rng.randint(112, 989), rng.randint(13, 98), rng.randint(1001, 9989)
    sign = rng.choice("+-")
    value = a * b + c if sign == "+" else a * b - c
    prompt = f"What is {a} * {b} {sign} {c}? End with the number alone on the last line."
    return Task(Kind.ARITHMETIC, prompt, str(value))


def _ordering(rng: random.Random, options: TaskOptions, share: float) -> Task:
    if options.level is Level.BASIC:
        a, b = rng.sample(range(10, 999), 2)
        return Task(Kind.ORDERING, f"Which is larger, {a} or {b}?", str(max(a, b)))
    values = rng.sample(range(100, 10_000), 9)
    prompt = (
        f"Sort from smallest to largest: {', '.join(map(str, values))}. "
        "End with a line that holds the sorted numbers, separated by commas, and nothing else."
    )
    return Task(Kind.ORDERING, prompt, ", ".join(map(str, sorted(values))))


def _copying(rng: random.Random, options: TaskOptions, share: float) -> Task:
    if options.level is Level.BASIC:
        sentence = _sentence(rng)
        return Task(Kind.COPYING, f"Repeat this sentence: {sentence}", sentence)
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    code = "-".join("".join(rng.choices(alphabet, k=5)) for _ in range(8))
    return Task(Kind.COPYING, f"Repeat this code exactly, and write nothing else: {code}", code)


def _needle(rng: random.Random, options: TaskOptions, share: float) -> Task:
    """One numbered locker among sentences about other things, at a depth of ``share``."""
    place, number = rng.choice(_PLACES), rng.randint(10_000, 99_999)
    sentences, words = [], 0
    while words < options.needle_words:
        sentences.append(_sentence(rng))
        words += len(sentences[-1].split())
    needle = f"The number of the locker in the {place} is {number}."
    sentences.insert(round(share * len(sentences)), needle)
    prompt = (
        f"{' '.join(sentences)}\n\nWhat is the number of the locker in the {place}? "
        "End with the number alone on the last line."
    )
    return Task(Kind.NEEDLE, prompt, str(number))


def _sentence(rng: random.Random) -> str:
    who, verb, what, where = (rng.choice(words) for words in (_WHO, _VERBS, _THINGS, _WHERE))
    return f"The {who} {verb} the {what} {where}."


_PLACES = ("station", "library", "swimming hall", "theatre", "harbour", "market")
_WHO = (
    *("baker", "captain", "doctor", "farmer", "gardener", "girl", "judge", "king", "lady"),
    *("man", "miller", "old woman", "painter", "sailor", "soldier", "teacher", "boy", "tailor"),
)
_VERBS = (
    *("carried", "found", "lost", "painted", "sold", "watched", "hid", "forgot", "bought"),
    *("broke", "counted", "washed", "followed", "left", "kept", "moved"),
)
_THINGS = (
    *("lamp", "letter", "red boat", "horse", "clock", "black hat", "basket", "window", "coin"),
    *("green door", "table", "old book", "wheel", "white stone", "bell", "map", "coat"),
)
_WHERE = (
    *("before breakfast", "near the river", "in the garden", "on the hill", "after dark"),
    *("behind the church", "without a word", "at the gate", "in the rain", "by the sea"),
    *("under the bridge", "for his brother", "in the old mill", "on the road"),
)

_MAKERS: dict[Kind, Callable[[random.Random, TaskOptions, float], Task]] = {
    Kind.ARITHMETIC: _arithmetic,
    Kind.ORDERING: _ordering,
    Kind.COPYING: _copying,
    Kind.NEEDLE: _needle,
}
