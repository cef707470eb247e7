"""Logits of llama.cpp, token by token, for the tests that hold something against them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3q.llama.context import LlamaContext


def logits_of(context: LlamaContext, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits after each of ``tokens``, read as one fresh sequence, float32 ``[tokens, vocab]``."""
    context.clear()
    rows = []
    for first in range(0, len(tokens), context.batch_size):
        part = tokens[first : first + context.batch_size]
        context.decode(part, np.arange(first, first + len(part), dtype=np.int32), outputs=True)
        rows.append(context.logits().copy())
    return np.concatenate(rows)
