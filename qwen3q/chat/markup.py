"""Chat markup inside messages stays text: a file that is asked about can't end the user's turn."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from qwen3q.llama.model import LlamaModel

# Unicode noncharacters, which no text may carry
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKUP = re.compile(r"<\|\w+\|>|</?\w+>")
_GUARDED = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}|[{_OPEN}{_CLOSE}]")


def guard(text: str, model: LlamaModel) -> str:
    """Marks what would be read as special tokens of ``model``, so that ``encode`` spells it."""

    def mark(found: re.Match[str]) -> str:
        word = found[0]
        return f"{_OPEN}{word}{_CLOSE}" if model.special_token(word) is not None else word

    return _MARKUP.sub(mark, text.replace(_OPEN, "").replace(_CLOSE, ""))


def encode(prompt: str, model: LlamaModel) -> list[int]:
    """Tokens of a rendered prompt: the template's markup as special tokens, guarded markup as text.

    A template may cut a guarded word in two; what is left of its marks is dropped.
    """
    parts: list[NDArray[np.int32]] = []
    position = 0
    for found in _GUARDED.finditer(prompt):
        parts.append(model.tokenize(prompt[position : found.start()], parse_special=True))
        word = found[1] or ""
        # llama.cpp matches <think> and other user-defined tokens even in plain text
        parts += [model.tokenize(word[:1]), model.tokenize(word[1:])]
        position = found.end()
    parts.append(model.tokenize(prompt[position:], parse_special=True))
    return [int(token) for part in parts for token in part]
