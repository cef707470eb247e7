"""Continuing many prompts at once: where an answer ends, the next prompt takes its place.

A step reads every weight once, however many sequences it continues. So a model that is as slow as
its memory gives several tokens in the time of one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3q.evaluate.sampling import (
    FinishedFn,
    GrownFn,
    Prompt,
    choose,
    ignore,
    uniforms,
    unwatched,
)
from qwen3q.prefix import common_prefix


class Slots(Protocol):
    """Places for sequences in a loaded model; each keeps what it has read."""

    @property
    def count(self) -> int:
        """How many there are."""

    def held(self, slot: int) -> Sequence[int]:
        """What ``slot`` has read."""

    def read(self, slot: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Lets ``slot`` hold just ``tokens``; the logits after the last, ``[vocabulary]``."""

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Reads one token more in each of ``slots``; the logits, ``[slots, vocabulary]``."""


def fitting_slots(nbytes: int, free: int | None, most: int) -> int:
    """How many sequences, each with keys and values of ``nbytes``, half of the free memory holds:
    1 to ``most``, and 1 where what is free is not known."""
    return max(1, min(most, (free or 0) // (2 * nbytes)))


class _Answer:
    """What becomes of one prompt."""

    def __init__(self, number: int, prompt: Prompt, max_tokens: int) -> None:
        self.number = number
        self._max_tokens = prompt.limit(max_tokens)
        self.made: list[int] = []
        self._sampling, self._ended = prompt.sampling, prompt.ended
        self._uniforms = uniforms(prompt.sampling.seed)

    def goes_on(self, logits: NDArray[np.float32], stop_tokens: frozenset[int]) -> bool:
        """Chooses the next token; False if it ends the answer."""
        token = choose(logits, self._sampling, next(self._uniforms), self.made)
        if token in stop_tokens:
            return False
        self.made.append(token)
        ended = self._ended is not None and self._ended(self.made)
        return not ended and len(self.made) < self._max_tokens


def continue_side_by_side(
    slots: Slots,
    prompts: Sequence[Prompt],
    max_tokens: int,
    stop_tokens: frozenset[int],
    finished: FinishedFn = ignore,
    grown: GrownFn = unwatched,
) -> list[list[int]]:
    """As ``Backend.generate``, over ``slots``."""
    waiting = deque(enumerate(prompts))
    free = set(range(slots.count))
    running: dict[int, _Answer] = {}
    made: list[list[int]] = [[] for _ in prompts]

    def take(slot: int, answer: _Answer, logits: NDArray[np.float32]) -> None:
        running[slot] = answer
        if answer.goes_on(logits, stop_tokens):
            grown(answer.number, len(answer.made))
        else:
            made[answer.number] = answer.made
            del running[slot]
            free.add(slot)
            finished(answer.number, answer.made)

    while waiting or running:
        while waiting and free:
            number, prompt = waiting.popleft()
            slot = max(
                sorted(free), key=lambda slot: common_prefix(slots.held(slot), prompt.tokens)
            )
            free.remove(slot)
            take(slot, _Answer(number, prompt, max_tokens), slots.read(slot, prompt.tokens))
        if running:
            # llama.cpp takes neighbouring sequences in one pass only in ascending order
            now = dict(sorted(running.items()))
            rows = slots.step(list(now), [answer.made[-1] for answer in now.values()])
            for (slot, answer), logits in zip(now.items(), rows, strict=True):
                take(slot, answer, logits)
    return made
