"""The gate: flaws in replies, its intervals, and a model that lost its arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qwen3q.cli.eval_gate import gate_options
from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendOptions
from qwen3q.evaluate.gate import Asking, Reply, _thinking_tokens, bootstrap, compare
from qwen3q.evaluate.gate_flaws import Flaw, Mode, find_flaws, scripts
from qwen3q.evaluate.gate_run import GateOptions, _rounds, failed, run_gate
from qwen3q.evaluate.gate_tables import gate_tables
from qwen3q.evaluate.suites import SUITES, read_suite
from qwen3q.evaluate.tables import markdown
from qwen3q.evaluate.tasks import Kind, Level, Task

THINKING, PLAIN = Mode.THINKING, Mode.PLAIN


@pytest.mark.parametrize(
    ("reply", "mode", "ended", "flaws"),
    [
        ("<think>\n1+1\n</think>\n\n2", THINKING, True, set()),
        ("2", PLAIN, True, set()),
        ("2", THINKING, True, {Flaw.UNOPENED}),
        ("<think>\n1+1", THINKING, True, {Flaw.UNCLOSED, Flaw.EMPTY}),
        ("<think>\n1+1+1+1", THINKING, False, {Flaw.ENDLESS}),
        ("<think>\n1+1\n</think>\n\n", THINKING, True, {Flaw.EMPTY}),
        ("<think>\n1\n</think>\n\n2 </think> 2", THINKING, True, {Flaw.LEAKED}),
        ("<think>\n1\n</think>\n\n2", PLAIN, True, {Flaw.LEAKED}),
        ("1\n</think>\n\n2", PLAIN, True, {Flaw.LEAKED}),
        ("", PLAIN, True, {Flaw.EMPTY}),
        ("2 2 2 2", PLAIN, False, {Flaw.ENDLESS}),
        ("<think>\n一加一\n</think>\n\n2", THINKING, True, {Flaw.LANGUAGE}),
        ("<think>\n1+1\n</think>\n\nОтвет 2", THINKING, True, {Flaw.LANGUAGE}),
        ("<think>\n1\n</think>\n\n<think>2", THINKING, True, {Flaw.LEAKED}),
        ("<think>\n1\n</think>\n\n2 2 2 2", THINKING, False, {Flaw.ENDLESS}),
        ("1 <think>2", PLAIN, True, {Flaw.LEAKED}),
        ("1+1\n</think>\n\n2", THINKING, True, {Flaw.UNOPENED, Flaw.LEAKED}),
        ("", THINKING, True, {Flaw.UNOPENED, Flaw.EMPTY}),
        ("\n \n", PLAIN, True, {Flaw.EMPTY}),
    ],
)
def test_flaws(reply, mode, ended, flaws):
    assert find_flaws("What is 1 + 1?", reply, mode, ended=ended) == flaws


def test_a_reply_in_the_questions_own_script_is_fine():
    assert find_flaws("一加一是多少？", "二", PLAIN, ended=True) == set()
    assert scripts("Naïve café, α ≤ β × 2 — “ok”") == set()
    assert scripts("да 和") == {"CYRILLIC", "CJK"}


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(4)
    truth = 0.1
    covered = 0
    for seed in range(200):
        values = rng.choice([-1.0, 0.0, 1.0], 60, p=[0.15, 0.6, 0.25])
        interval = bootstrap(values, seed)
        assert interval.low <= interval.mean <= interval.high
        covered += interval.low <= truth <= interval.high
    assert 0.9 <= covered / 200 <= 0.99


TASK = Task(Kind.ARITHMETIC, "What is 1 + 1?", "2")


def replies(right: list[bool], flawed: list[bool]) -> list[tuple[Reply, ...]]:
    return [
        (Reply(TASK, "", r, frozenset({Flaw.EMPTY} if f else ()), 0),)
        for r, f in zip(right, flawed, strict=True)
    ]


def test_verdicts():
    good = replies([True] * 30, [False] * 30)
    one_less = replies([True] * 29 + [False], [False] * 30)
    half = replies([True] * 15 + [False] * 15, [False] * 30)
    flawed = replies([True] * 30, [True] * 10 + [False] * 20)
    assert compare(good, good).passed
    assert compare(good, one_less).passed
    assert not compare(good, half).passed
    assert not compare(good, flawed).passed
    assert compare(half, good).passed
    assert compare(flawed, good).passed
    assert compare(good, half) == compare(good, half)


@pytest.mark.parametrize(
    ("right", "asked", "word"), [(0, 4, "inconclusive"), (1, 20, "inconclusive"), (4, 4, "pass")]
)
def test_a_model_that_knows_nothing_can_lose_nothing(right, asked, word):
    """Whoever answers as the float model does passes only where all wrong would have failed."""
    floats = replies([i < right for i in range(asked)], [False] * asked)
    nothing = replies([False] * asked, [False] * asked)
    assert compare(floats, floats).word == word
    assert (compare(floats, nothing).word == "fail") == (word == "pass")
    assert compare(floats, replies([False] * asked, [True] * asked)).word == "fail"


def test_intervals_are_over_questions_not_samples():
    """Ten samples of three questions say no more than three questions do."""

    def answered(rights: list[int]) -> list[tuple[Reply, ...]]:
        return [tuple(Reply(TASK, "", i < r, frozenset(), 0) for i in range(10)) for r in rights]

    verdict = compare(answered([10, 10, 10]), answered([10, 10, 7]))
    assert verdict.right.mean == pytest.approx(-0.1)
    assert verdict.right.low == pytest.approx(-0.3)
    assert verdict.right.high == 0
    assert verdict.passed


def test_the_thinkings_length_is_compared():
    long = [(Reply(TASK, "", True, frozenset(), 100 + i),) for i in range(20)]
    short = [(Reply(TASK, "", True, frozenset(), 60 + i),) for i in range(20)]
    verdict = compare(short, long)
    assert verdict.thinking.low == verdict.thinking.mean == verdict.thinking.high == 40
    assert verdict.passed


def test_models_are_asked_with_the_same_seeds_and_questions_with_others():
    asking = Asking(samples=3)
    seeds = {asking.sampling(THINKING, q, s).seed for q in range(20) for s in range(3)}
    assert len(seeds) == 60
    assert asking.sampling(PLAIN, 4, 1) == Asking(samples=5).sampling(PLAIN, 4, 1)
    assert asking.sampling(PLAIN, 4, 1) != Asking(seed=1).sampling(PLAIN, 4, 1)
    assert asking.sampling(THINKING, 0, 0).temperature == 0.6
    assert asking.sampling(PLAIN, 0, 0).top_p == 0.8
    assert Asking(greedy=True).sampling(THINKING, 0, 0).temperature == 0


def test_options_go_over_a_suites():
    suite = read_suite("full").gate
    assert suite is not None
    assert gate_options(suite, False, each=None, greedy=False) == suite
    changed = gate_options(suite, False, each=3, level="basic", needle_words=0, greedy=True)
    assert changed == replace(suite, each=3, level=Level.BASIC, needle_words=0, greedy=True)
    assert gate_options(None, True, samples=4) == GateOptions(samples=4)
    assert gate_options(None, False, samples=None) is None
    with pytest.raises(UsageError, match="need --gate or --suite"):
        gate_options(None, False, needle_words=100)
    with pytest.raises(UsageError, match="'hard' is no level"):
        gate_options(None, True, level="hard")


@pytest.mark.parametrize("name", SUITES)
def test_suites_can_be_asked(name):
    suite = read_suite(name)
    assert suite.gate is not None
    rounds = _rounds(suite.gate)
    assert len(rounds[0].tasks) == 3 * suite.gate.each
    assert [asked.name for asked in rounds[1:]] == ["needles"] * bool(suite.gate.needle_words)


def test_tokens_of_thinking_end_with_its_end(codec):
    thought = codec.encode("2 and 2 are 4.</think>", parse_special=True).tolist()
    answer = codec.encode("\n\nFour </think>.", parse_special=True).tolist()
    assert _thinking_tokens(thought + answer, codec) == len(thought)
    assert _thinking_tokens(thought[:-1], codec) == len(thought) - 1


def test_the_gate_lets_q8_pass_and_stops_q2(demo_ggufs):
    options = GateOptions(Level.BASIC, each=6, max_tokens=200, greedy=True)
    files = [find_artefact(str(demo_ggufs[kind])) for kind in ("BF16", "Q8_0", "Q2_K")]
    rows = run_gate(files[0], files[1:], options, BackendOptions(threads=1))
    verdicts = {(row["format"], row["mode"]): row["verdict"] for row in rows}
    assert verdicts["gguf:BF16", "thinking"] == "reference"
    assert verdicts["gguf:Q8_0", "thinking"] == "pass"
    assert verdicts["gguf:Q2_K", "thinking"] == "fail"
    assert failed(rows) == ["Qwen3-demo-Q2_K"]
    assert failed(rows[:4]) == []
    float_thinking, float_plain = rows[:2]
    assert float_thinking["by_kind"]["arithmetic"] == {"asked": 6, "right": 6}
    assert float_plain["by_kind"]["arithmetic"]["right"] == 0
    assert float_thinking["thinking_tokens"] > 10
    assert float_plain["thinking_tokens"] == 0
    text = "\n".join(markdown(table) for _, table in gate_tables({"gate": rows}))
    assert "| gguf" not in text
    assert text.count("| fail |") >= 1
