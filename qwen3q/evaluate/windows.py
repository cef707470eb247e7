"""What is measured, as chunks of tokens: one text in a row, or windows of single documents."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import UsageError
from qwen3q.evaluate.chunks import encode_beginning, split_chunks
from qwen3q.evaluate.tokens import TextCodec


@dataclass(frozen=True, slots=True)
class DocumentWindows:
    """``count`` windows from documents drawn with Python's ``random``, each within one document.

    GPTQ's procedure for C4 (``get_c4`` of its ``datautils.py``): a document is drawn until one is
    long enough, then a start in it.
    """

    documents: tuple[str, ...]
    count: int
    seed: int = 0


def text_chunks(
    text: str | DocumentWindows,
    codec: TextCodec,
    context: int,
    max_chunks: int | None,
    *,
    parse_special: bool,
) -> NDArray[np.int32]:
    """Chunks to be read by themselves, int32 ``[chunks, context]``.

    Raises:
        UsageError: not one whole chunk, or no document is longer than one.
    """
    if isinstance(text, str):
        needed = None if max_chunks is None else max_chunks * context
        encode = partial(codec.encode, parse_special=parse_special)
        tokens = encode_beginning(text, needed, encode)
        return split_chunks(tokens, context, max_chunks, codec.bos)
    rng = random.Random(text.seed)
    known: dict[int, NDArray[np.int32]] = {}
    windows = []
    for _ in range(text.count):
        while True:
            number = rng.randint(0, len(text.documents) - 1)
            if number not in known:
                known[number] = codec.encode(text.documents[number], parse_special=parse_special)
            tokens = known[number]
            if len(tokens) > context:
                break
            if len(known) == len(text.documents) and max(map(len, known.values())) <= context:
                raise UsageError(
                    f"No document has more than {context} tokens.", "Give a smaller --context."
                )
        start = rng.randint(0, len(tokens) - context - 1)
        windows.append(tokens[start : start + context])
    return split_chunks(np.concatenate(windows), context, max_chunks, codec.bos)


def text_digest(text: str | DocumentWindows) -> str:
    """SHA-256 of all that the chunks are made from."""
    if isinstance(text, str):
        return sha256(text.encode()).hexdigest()
    digest = sha256(f"{text.count} {text.seed}".encode())
    for document in text.documents:
        digest.update(b"\0" + document.encode())
    return digest.hexdigest()
