"""A text's tokens in chunks, and perplexity from what they give; needs no engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from math import exp, log, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3q.counts import counted
from qwen3q.errors import UsageError
from qwen3q.files import read_text

_LINE_START = re.compile(r"\n(?=[ \t]*[\w!-~])")
"""Before a line that is not blank. No token spans it: Qwen's pre-tokenizer splits there."""

_CHARACTERS_PER_TOKEN = 8

_LARGEST = 1e300


class Scored(StrEnum):
    """Which tokens of a chunk count.

    HALF is llama-perplexity's: those after its first ``context / 2 + 1``, so that each has at
    least half a context before it. FULL takes all but the first.
    """

    HALF = "half"
    FULL = "full"


def read_as_llama(path: Path) -> str:
    """A text file, less one newline at its end, as llama.cpp's ``-f`` reads it.

    Raises:
        UsageError: no such file, or no UTF-8.
    """
    return read_text(path).removesuffix("\n")


def encode_beginning(
    text: str, needed: int | None, encode: Callable[[str], NDArray[np.int32]]
) -> NDArray[np.int32]:
    """The tokens of ``text``, or of so much of its beginning that there are ``needed``."""
    size = _CHARACTERS_PER_TOKEN * needed if needed is not None else len(text)
    while cut := _LINE_START.search(text, size):
        tokens = encode(text[: cut.end()])
        # one more, as the last may only mark the end
        if needed is not None and len(tokens) > needed:
            return tokens
        size *= 2
    return encode(text)


def split_chunks(
    tokens: NDArray[np.int32], context: int, max_chunks: int | None, bos: int | None
) -> NDArray[np.int32]:
    """Whole chunks, int32 ``[chunks, context]``; what is left over at the end is dropped.

    Args:
        bos: put in the place of each chunk's first token, if given.

    Raises:
        UsageError: not one whole chunk.
    """
    count = len(tokens) // context
    if max_chunks is not None:
        count = min(count, max_chunks)
    if count < 1:
        raise UsageError(
            f"The text has {counted(len(tokens), 'token')}, less than one chunk of {context}.",
            "Give a longer text or a smaller --context.",
        )
    chunks = tokens[: count * context].reshape(count, context).copy()
    if bos is not None:
        chunks[:, 0] = bos
    return chunks


def summarize(nlls: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """Perplexity and its standard error, from negative log-likelihoods in nats.

    The error of the mean goes through exp to first order, as llama-perplexity prints it.
    """
    values = np.asarray(nlls, np.float64)
    mean = float(values.mean())
    variance = float((values * values).mean()) - mean * mean
    error = sqrt(variance / (values.size - 1)) if variance > 0 and values.size > 1 else 0.0
    perplexity = perplexity_of(mean)
    return perplexity, min(error * perplexity, _LARGEST)


def perplexity_of(nats: float) -> float:
    """``exp`` of a mean negative log-likelihood, as far as a float goes: a broken model's may be
    beyond."""
    return exp(min(nats, log(_LARGEST)))
