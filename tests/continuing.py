"""One continuation of a backend, where a test needs no more."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3q.evaluate.backends import Backend
from qwen3q.evaluate.sampling import GREEDY, Prompt, Sampling


def continued(
    backend: Backend,
    tokens: Sequence[int],
    max_tokens: int,
    stop_tokens: frozenset[int] = frozenset(),
    sampling: Sampling = GREEDY,
) -> list[int]:
    [made] = backend.generate([Prompt(tokens, sampling)], max_tokens, stop_tokens)
    return made
