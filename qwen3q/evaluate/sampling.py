"""How a backend chooses the next token, and the random numbers that it does so with.

Every backend that sees logits draws the same numbers for the same seed, one per token, and walks
the same order of candidates. So a float model and its quantization part only where their
probabilities do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS = 512
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the sampler; the defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token always.
        top_p: probability mass kept, after the temperature.
        top_k: candidates kept; 0 keeps all.
        min_p: least probability relative to the likeliest; 0 is off.
        seed: of the random numbers; a server that takes one is given it.
        presence_penalty: taken off the logit of each token already generated; 0 is off.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0


GREEDY = Sampling()


EndedFn = Callable[[Sequence[int]], bool]
"""Told the tokens that were made so far; True ends the continuation."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue, and how.

    Attributes:
        ended: asked after every token, or now and then by a server; None never ends.
        max_tokens: fewer than all prompts may have at most; None takes that.
    """

    tokens: Sequence[int]
    sampling: Sampling = GREEDY
    ended: EndedFn | None = None
    max_tokens: int | None = None

    def limit(self, max_tokens: int) -> int:
        """The most tokens of its continuation, of ``max_tokens`` for all."""
        return max_tokens if self.max_tokens is None else min(self.max_tokens, max_tokens)


FinishedFn = Callable[[int, list[int]], None]
"""Called with a prompt's place among those asked, and its continuation."""


def ignore(_number: int, _tokens: list[int]) -> None:
    """A ``FinishedFn`` that does nothing."""


GrownFn = Callable[[int, int], None]
"""Called with a prompt's place among those asked, and the tokens made for it so far."""


def unwatched(_number: int, _length: int) -> None:
    """A ``GrownFn`` that does nothing."""


def uniforms(seed: int) -> Iterator[float]:
    """Numbers in [0, 1), as C++'s ``uniform_real_distribution<double>`` over ``mt19937`` has them.

    That is what llama.cpp's ``dist`` sampler draws, one per token (``src/llama-sampler.cpp``).
    """
    state = np.random.RandomState(seed)
    while True:
        low, high = state.randint(0, 1 << 32, (_DRAWS, 2), np.uint32).T.astype(np.float64)
        yield from ((low + high * 2.0**32) / 2.0**64).tolist()


def choose(
    logits: NDArray[np.float32], sampling: Sampling, uniform: float, made: Collection[int] = ()
) -> int:
    """The next token: penalty, top-k, temperature, top-p, min-p, then a draw, as llama.cpp does.

    Args:
        logits: float32 ``[vocabulary]``; not changed.
        uniform: the draw, in [0, 1).
        made: tokens generated so far.
    """
    if sampling.presence_penalty and made:
        logits = logits.copy()
        logits[list(set(made))] -= np.float32(sampling.presence_penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    kept = _likeliest(logits, sampling.top_k or len(logits))
    scaled = logits[kept] / np.float32(sampling.temperature)
    odds = np.exp(scaled - scaled[0])
    if sampling.top_p < 1:
        shares = np.cumsum(odds / odds.sum(dtype=np.float64))
        odds = odds[: int(np.searchsorted(shares, sampling.top_p)) + 1]
    if sampling.min_p > 0:
        odds = odds[odds >= sampling.min_p]
    mass = np.cumsum(odds, dtype=np.float64)
    return int(kept[min(int(np.searchsorted(mass, mass[-1] * uniform)), len(odds) - 1)])


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The ``count`` largest, largest first; of equal ones the first.

    The smallest of the ``count`` largest of the blocks' maxima is no larger than what is looked
    for, so most of a vocabulary is only compared with it.
    """
    kept = np.arange(len(logits))
    blocks = len(logits) // _BLOCK
    if count < blocks:
        largest = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(1)
        kept = np.flatnonzero(logits >= np.partition(largest, blocks - count)[blocks - count])
    return kept[np.argsort(-logits[kept], kind="stable")][:count]
