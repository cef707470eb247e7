"""Prompts of an exact number of tokens, no two alike, so that no prefix cache makes them free."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from qwen3q.counts import counted
from qwen3q.data.texts import evaluation_text
from qwen3q.errors import UsageError
from qwen3q.evaluate.tokens import TextCodec

_WORDS = 600


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text`` has exactly the tokens ``tokens``."""

    tokens: tuple[int, ...]
    text: str


def make_prompts(codec: TextCodec, length: int, count: int, seed: int) -> list[Prompt]:
    """``count`` prompts of ``length`` tokens each, of words of the built-in English text.

    The same seed gives the same prompts.

    Raises:
        UsageError: a length that no words have.
    """
    found = re.findall(r"[A-Za-z]{2,}", evaluation_text("english"))
    known = list(dict.fromkeys(found))[:_WORDS]
    by_length: dict[int, list[str]] = {}
    for word in known:
        by_length.setdefault(len(codec.encode(f" {word}", parse_special=False)), []).append(word)
    words = [(size, word) for size, same in sorted(by_length.items()) for word in same]
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(count):
        text, left = "", length
        while left > 0:
            fitting = [pair for pair in words if pair[0] <= left] if left < 8 else words
            if not fitting:
                break
            size, word = fitting[int(rng.integers(len(fitting)))]
            if size <= left:
                text, left = f"{text} {word}", left - size
        tokens = codec.encode(text, parse_special=False).tolist()
        if len(tokens) != length or length < 1:
            raise UsageError(
                f"No prompt of {counted(length, 'token')} can be made with this tokenizer."
            )
        prompts.append(Prompt(tuple(tokens), text))
    return prompts
