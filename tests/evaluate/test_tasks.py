"""Generated questions: their answers are right, and grading tells right from wrong replies."""

from __future__ import annotations

import re

import pytest

from qwen3q.errors import UsageError
from qwen3q.evaluate.tasks import Kind, Level, Task, TaskOptions, is_correct, make_tasks


def tasks(kind: Kind, level: Level, each: int = 30, **more) -> list[Task]:
    return make_tasks(TaskOptions((kind,), level, each, **more))


@pytest.mark.parametrize("level", Level)
def test_arithmetic_is_right(level):
    for task in tasks(Kind.ARITHMETIC, level):
        expression = re.search(r"What is ([\d +*-]+)\?", task.prompt)
        assert expression is not None
        assert eval(expression[1]) == int(task.answer)


@pytest.mark.parametrize("level", Level)
def test_ordering_is_right(level):
    for task in tasks(Kind.ORDERING, level):
        given = [int(n) for n in re.findall(r"\d+", task.prompt)]
        expected = [max(given)] if level is Level.BASIC else sorted(given)
        assert task.answer == ", ".join(map(str, expected))


@pytest.mark.parametrize("level", Level)
def test_copying_asks_for_what_it_holds(level):
    for task in tasks(Kind.COPYING, level):
        assert task.prompt.endswith(task.answer)
        assert len(task.answer) > 20


def test_needle_is_there_once_at_every_depth():
    made = tasks(Kind.NEEDLE, Level.STANDARD, each=10, needle_words=800)
    depths = []
    for task in made:
        assert task.prompt.count(task.answer) == 1
        assert 800 <= len(task.prompt.split()) <= 850
        depths.append(task.prompt.index(task.answer) / len(task.prompt))
    assert depths == sorted(depths)
    assert depths[0] < 0.1
    assert depths[-1] > 0.85


def test_same_seed_same_questions_and_no_repeats():
    options = TaskOptions(tuple(Kind), each=12, needle_words=50, seed=4)
    assert make_tasks(options) == make_tasks(options)
    assert make_tasks(options) != make_tasks(TaskOptions(tuple(Kind), each=12, needle_words=50))
    prompts = [task.prompt for task in make_tasks(options)]
    assert len(set(prompts)) == len(prompts) == 48


NUMBER = Task(Kind.ARITHMETIC, "", "1046")
ORDER = Task(Kind.ORDERING, "", "418")
LIST = Task(Kind.ORDERING, "", "100, 2300, 4567")
COPY = Task(Kind.COPYING, "", "The boy hid the lamp.")


@pytest.mark.parametrize(
    ("task", "reply"),
    [
        (NUMBER, "1046"),
        (NUMBER, "It is **1,046**."),
        (NUMBER, "$$\\boxed{1046}$$"),
        (NUMBER, "<think>\n1045? No.\n</think>\n\n1000 + 46 = 1046."),
        (NUMBER, "So 1\u202f046"),
        (ORDER, "418 is larger than 77."),
        (ORDER, "418 > 77"),
        (ORDER, "Of 77 and 418 the larger is 418"),
        (LIST, "Sorted:\n100,2300,4567"),
        (LIST, "2300, 4567, 100 becomes 100, 2300, 4567."),
        (COPY, '"The boy hid the lamp."'),
        (Task(Kind.ARITHMETIC, "", "-12"), "The result is \N{MINUS SIGN}12."),
    ],
)
def test_right_replies(task, reply):
    assert is_correct(task, reply)


@pytest.mark.parametrize(
    ("task", "reply"),
    [
        (NUMBER, ""),
        (NUMBER, "1045"),
        (NUMBER, "11046"),
        (NUMBER, "10.46"),
        (NUMBER, "1046.5"),
        (NUMBER, "<think>\n1046\n</think>\n\nI can't tell."),
        (NUMBER, "<think>\nIt is 1046"),
        (NUMBER, "1046, or perhaps 1047"),
        (ORDER, "77 is larger than 418."),
        (LIST, "100, 4567, 2300"),
        (LIST, "2300, 4567"),
        (COPY, "The boy hid a lamp."),
        (Task(Kind.ARITHMETIC, "", "-12"), "12"),
    ],
)
def test_wrong_replies(task, reply):
    assert not is_correct(task, reply)


def test_impossible_numbers_of_questions():
    with pytest.raises(UsageError, match="can't be made"):
        make_tasks(TaskOptions(each=0))
