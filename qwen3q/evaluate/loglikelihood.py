"""How likely a model finds given continuations, many at a time, through its logits or a server.

Rows of different lengths share a call: the shorter ones are filled up at their end, which causal
attention never looks at. Continuations of the same tokens share a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3q.evaluate.backends import Backend
from qwen3q.evaluate.endpoint_backend import EndpointBackend
from qwen3q.progress import ProgressFn, silent

CALL_TOKENS = 1 << 16
"""Tokens per call, filling counted; torch reads all weights once per call."""
SHORTEST = 0.8
"""Rows shorter than this share of a call's longest go into another call."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens and where in them the part begins that is scored.

    Attributes:
        start: at least 1, as the first token has nothing before it.
    """

    tokens: tuple[int, ...]
    start: int


@dataclass(slots=True)
class Likelihood:
    """``log_probability`` in nats; ``greedy``: greedy decoding would have given the same."""

    log_probability: float = 0.0
    greedy: bool = True


def loglikelihoods(
    model: Backend, asked: Sequence[Continuation], progress: ProgressFn = silent
) -> list[Likelihood]:
    """The likelihood of each continuation, in the order asked.

    Raises:
        EndpointError: a server gives no log-probabilities of a prompt.
    """
    if isinstance(model, EndpointBackend):
        return _ask(model, asked, progress)
    out = [Likelihood() for _ in asked]
    rows: dict[tuple[int, ...], list[int]] = {}
    for number, continuation in enumerate(asked):
        rows.setdefault(continuation.tokens[:-1], []).append(number)
    done = 0
    for group in _groups(list(rows)):
        numbers = [rows[inputs] for inputs in group]
        _score(model, group, [[(n, asked[n]) for n in row] for row in numbers], out)
        done += sum(map(len, numbers))
        progress(done, len(asked), "continuations")
    return out


def _ask(
    model: EndpointBackend, asked: Sequence[Continuation], progress: ProgressFn
) -> list[Likelihood]:
    """Likelihoods as a server tells them; ``greedy`` is False where it tells no likeliest token."""
    out = []
    for one, told in zip(asked, model.score([one.tokens for one in asked]), strict=True):
        scored = slice(one.start - 1, None)
        greedy = told.top is not None and told.top[scored].tolist() == list(one.tokens[one.start :])
        out.append(Likelihood(float(told.log_probabilities[scored].sum()), greedy))
        progress(len(out), len(asked), "continuations")
    return out


def _groups(rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Rows for one call each, longest first."""
    group: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len, reverse=True):
        if group and (
            len(row) < SHORTEST * len(group[0]) or (len(group) + 1) * len(group[0]) > CALL_TOKENS
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _score(
    model: Backend,
    inputs: Sequence[tuple[int, ...]],
    asked: Sequence[Sequence[tuple[int, Continuation]]],
    out: list[Likelihood],
) -> None:
    """Adds up the log-probabilities of the continuations of some rows.

    Args:
        asked: for each row, its continuations and their places in ``out``.
    """
    # one more than the longest row: a backend gives no logits at a chunk's last position
    chunks = np.zeros((len(inputs), len(inputs[0]) + 1), np.int32)
    for chunk, row in zip(chunks, inputs, strict=True):
        chunk[: len(row)] = row
    first = min(c.start for row in asked for _, c in row) - 1
    width = chunks.shape[1] - 1 - first
    wanted: dict[int, list[tuple[int, int]]] = {}
    for number, row_asked in enumerate(asked):
        for place, continuation in row_asked:
            for position in range(continuation.start, len(continuation.tokens)):
                row_number = number * width + position - 1 - first
                wanted.setdefault(row_number, []).append((place, continuation.tokens[position]))
    for start, values in model.logits(chunks, first):
        for row_number in range(start, start + len(values)):
            if row_number in wanted:
                _add(values[row_number - start], wanted[row_number], out)


def _add(
    logits: NDArray[np.float32], targets: Sequence[tuple[int, int]], out: list[Likelihood]
) -> None:
    """One position's part of the continuations that go through it."""
    likeliest = int(logits.argmax())
    shifted = logits.astype(np.float64) - logits[likeliest]
    normalizer = np.log(np.exp(shifted).sum())
    for place, token in targets:
        out[place].log_probability += float(shifted[token] - normalizer)
        out[place].greedy &= token == likeliest
