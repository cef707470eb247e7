"""What is said to be left of replies, against what was left."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qwen3q.evaluate.reply_lengths import ReplyProgress, expected_left


@pytest.mark.parametrize("seed", range(5))
def test_expectation_is_that_of_scipys_survival_curve(seed):
    rng = np.random.default_rng(seed)
    limit = 60
    ended = rng.integers(0, limit, 30).tolist() + [limit] * 4
    running = rng.integers(1, limit, 7).tolist()
    known = stats.CensoredData(
        uncensored=[length for length in ended if length < limit],
        right=[*running, *(length for length in ended if length == limit)],
    )
    survival = stats.ecdf(known).sf.evaluate(np.arange(limit))
    reached = np.append(1.0, survival)
    want = 4 * survival.sum() + sum(survival[a:].sum() / reached[a] for a in running)
    assert expected_left(ended, running, 4, limit) == pytest.approx(want)


def test_nothing_known_is_the_most_that_can_come():
    assert expected_left([], [10, 0], 3, 100) == 490


def side_by_side(lengths: list[int], slots: int, limit: int) -> list[tuple[int, int]]:
    """Replies of these lengths, a token of each slot at a time: what was reported."""
    told: list[tuple[int, int]] = []
    bar = ReplyProgress({}, len(lengths), limit, lambda done, total, _: told.append((done, total)))
    running: dict[int, int] = {}
    waiting = list(range(len(lengths)))
    while waiting or running:
        while waiting and len(running) < slots:
            running[waiting.pop(0)] = 0
        for number in list(running):
            running[number] += 1
            if running[number] == lengths[number]:
                del running[number]
                bar.finished(number, lengths[number])
            else:
                bar.grown(number, running[number])
    return told


def test_endless_replies_are_foreseen_where_short_ones_end_first():
    rng = np.random.default_rng(0)
    limit = 1000
    lengths = [limit if rng.random() < 0.15 else int(rng.integers(5, 60)) for _ in range(100)]
    told = side_by_side(lengths, 16, limit)
    every = sum(lengths)
    halfway = [(done, total) for done, total in told if every / 4 < done < every]
    assert len(halfway) > 20
    for done, total in halfway:
        assert total - done == pytest.approx(every - done, abs=0.35 * every)
    assert told[-1] == (every, every)
    assert all(done < total for done, total in told[:-1])
