"""How many tokens replies of unknown length still take, while some have ended and some go on.

Side by side, short replies end first. Their mean says too little: those still running are longer
than they have got so far. Such lengths are right-censored, and Kaplan and Meier's estimate
(1958) takes both in.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qwen3q.progress import ProgressFn

_BETWEEN = 256
"""Tokens from one report to the next."""


def expected_left(ended: list[int], running: list[int], waiting: int, limit: int) -> float:
    """Tokens that are still to come, of replies with at most ``limit``.

    Lengths beyond all that ended count as ``limit``: nothing is known that says less.

    Args:
        ended: lengths of the replies there are.
        running: lengths so far of those that go on.
        waiting: replies that have not begun.
    """
    # at ``limit`` a reply is cut, which tells of no end before it
    ends = _counts(ended, limit)[:limit]
    lengths = _counts([*ended, *running], limit)
    at_risk = lengths[::-1].cumsum()[::-1][:limit]
    survival = np.cumprod(1 - ends / np.maximum(at_risk, 1))
    # a reply goes beyond t tokens with survival[t], so these sum to the tokens beyond t
    beyond = np.append(survival[::-1].cumsum()[::-1], 0.0)
    reached = np.append(1.0, survival)
    at = np.array(running, np.intp).clip(max=limit)
    return float(waiting * beyond[0] + (beyond[at] / reached[at]).sum())


def _counts(lengths: list[int], limit: int) -> NDArray[np.intp]:
    """How many there are of each length up to ``limit``, ``[limit + 1]``."""
    return np.bincount(np.array(lengths, np.intp).clip(max=limit), minlength=limit + 1)


class ReplyProgress:
    """Reports tokens made now, of those made and still expected."""

    def __init__(self, earlier: Mapping[int, int], count: int, limit: int, report: ProgressFn):
        """Of ``count`` replies with up to ``limit`` tokens, ``earlier`` has the lengths of some."""
        self._ended = dict(earlier)
        self._running: dict[int, int] = {}
        self._count, self._limit, self._report = count, limit, report
        self._before = sum(earlier.values())
        self._told = 0

    def grown(self, number: int, length: int) -> None:
        """A reply goes on, with so many tokens so far."""
        self._running[number] = length
        if self._made() >= self._told + _BETWEEN:
            self._tell()

    def finished(self, number: int, length: int) -> None:
        """A reply is complete."""
        self._running.pop(number, None)
        self._ended[number] = length
        self._tell()

    def _made(self) -> int:
        return sum(self._ended.values()) + sum(self._running.values()) - self._before

    def _tell(self) -> None:
        made = self._told = self._made()
        ended, running = list(self._ended.values()), list(self._running.values())
        waiting = self._count - len(ended) - len(running)
        left = expected_left(ended, running, waiting, self._limit)
        # what no token is left of is complete, whatever a sum of fractions says
        self._report(made, made + (max(1, round(left)) if waiting or running else 0), "replies")
