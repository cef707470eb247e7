"""The tokens everybody sees: a text tokenized once, special tokens parsed, cut into equal rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def token_rows(model: Path, text: Path, length: int, count: int) -> NDArray[np.int64]:
    """The text's first `count` rows of `length` tokens, fewer if it is short: `[rows, length]`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    with text.open(encoding="utf-8", newline="") as handle:
        ids = tokenizer.encode(handle.read(), add_special_tokens=False).ids
    rows = min(count, len(ids) // length)
    if rows == 0:
        raise ValueError(f"{text} has {len(ids)} tokens, fewer than one row of {length}")
    return np.array(ids[: rows * length], dtype=np.int64).reshape(rows, length)
