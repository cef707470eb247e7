"""Perplexity of a GGUF model on a text, by llama-perplexity's definition or over full contexts.

The text's tokens are cut into chunks of ``context`` tokens, each read by itself; perplexity is
exp of the mean negative log-likelihood of the scored tokens (``tools/perplexity/perplexity.cpp``).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import UsageError
from qwen3q.evaluate.chunks import Scored, encode_beginning, split_chunks, summarize
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.model import LlamaModel
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import default_threads

BATCH_TOKENS = 512
"""Tokens decoded at a time; their logits take 4 bytes per token and vocabulary entry."""


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """One measurement and everything it depends on.

    Attributes:
        stderr: standard error of ``perplexity``, tokens taken as independent.
        nll: mean negative log-likelihood per scored token, in nats.
        tokens: tokens scored.
        context: tokens per chunk.
        add_bos: whether each chunk's first token was replaced by BOS, as the file asks.
        parse_special: whether chat markup in the text was read as tokens.
    """

    file: Path
    perplexity: float
    stderr: float
    nll: float
    tokens: int
    chunks: int
    context: int
    scored: Scored
    add_bos: bool
    parse_special: bool
    key_type: str
    value_type: str
    seconds: float


def measure_perplexity(
    model: LlamaModel,
    text: str,
    *,
    context: int = 512,
    scored: Scored = Scored.HALF,
    max_chunks: int | None = None,
    parse_special: bool = False,
    threads: int | None = None,
    key_type: str = "F16",
    value_type: str = "F16",
    progress: ProgressFn = silent,
) -> PerplexityResult:
    """Measures ``text``'s perplexity under ``model``.

    Raises:
        UsageError: the text is too short for one chunk, or an option is out of range.
        LlamaError: llama.cpp fails.
    """
    if context < 2:
        raise UsageError(f"--context {context} scores no token; at least 2.")
    needed = None if max_chunks is None else max_chunks * context
    encode = partial(model.tokenize, add_special=True, parse_special=parse_special)
    tokens = encode_beginning(text, needed, encode)
    chunks = split_chunks(tokens, context, max_chunks, model.bos if model.add_bos else None)
    workers = threads or default_threads()
    options = ContextOptions(
        context=context, threads=threads, key_type=key_type, value_type=value_type
    )
    started = perf_counter()
    first = context // 2 if scored is Scored.HALF else 0
    nlls = np.empty((len(chunks), context - 1 - first))
    with ThreadPoolExecutor(workers) as pool:
        for rows, positions, logits in scored_logits(model, chunks, first, options, progress):
            targets = chunks[rows, positions + 1]
            found = negative_log_likelihoods(logits, targets.ravel(), pool, workers)
            nlls[rows, positions - first] = found.reshape(targets.shape)
    perplexity, stderr = summarize(nlls)
    return PerplexityResult(
        file=model.path,
        perplexity=perplexity,
        stderr=stderr,
        nll=float(nlls.mean()),
        tokens=nlls.size,
        chunks=len(chunks),
        context=context,
        scored=scored,
        add_bos=model.add_bos,
        parse_special=parse_special,
        key_type=key_type.upper(),
        value_type=value_type.upper(),
        seconds=perf_counter() - started,
    )


def scored_logits(
    model: LlamaModel,
    chunks: NDArray[np.int32],
    first: int,
    options: ContextOptions,
    progress: ProgressFn = silent,
    label: str = "perplexity",
) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.float32]]]:
    """Reads chunks in llama.cpp, as many side by side as ``BATCH_TOKENS`` hold.

    Args:
        first: the position in a chunk whose logits are the first; the last position has none.
        options: of one sequence.

    Yields:
        Which chunks, which positions in them, and their logits, ``[chunks * positions,
        vocabulary]``, which are llama.cpp's own until the next are asked for.
    """
    count, context = chunks.shape
    side_by_side = max(1, min(BATCH_TOKENS // context, count))
    batch = min(BATCH_TOKENS, context * side_by_side)
    options = replace(options, sequences=side_by_side, batch=batch, ubatch=batch)
    with LlamaContext(model, options) as llama:
        for start in range(0, count, side_by_side):
            group = chunks[start : start + side_by_side]
            llama.clear()
            for position in range(0, context, batch):
                positions = np.arange(position, min(position + batch, context), dtype=np.int32)
                wanted = (positions >= first) & (positions < context - 1)
                llama.decode(
                    group[:, positions].ravel(),
                    np.tile(positions, len(group)),
                    sequences=np.repeat(np.arange(len(group), dtype=np.int32), len(positions)),
                    outputs=np.tile(wanted, len(group)),
                )
                if wanted.any():
                    yield slice(start, start + len(group)), positions[wanted], llama.logits()
            progress(start + len(group), count, label)


def negative_log_likelihoods(
    logits: NDArray[np.float32],
    targets: NDArray[np.int32],
    pool: ThreadPoolExecutor,
    threads: int,
) -> NDArray[np.float64]:
    """-log softmax(``logits``)[``targets``]: exponentials in float32, their sum in float64.

    Args:
        logits: float32 ``[rows, vocabulary]``; not copied.
        targets: int32 ``[rows]``.

    Returns:
        float64 ``[rows]``, the same for any number of threads.
    """
    out = np.empty(len(targets))

    def work(start: int) -> None:
        shifted = np.empty(logits.shape[1], np.float32)
        for row in range(start, len(targets), threads):
            largest = logits[row].max()
            np.subtract(logits[row], largest, out=shifted)
            target = float(shifted[targets[row]])
            np.exp(shifted, out=shifted)
            out[row] = np.log(shifted.sum(dtype=np.float64)) - target

    list(pool.map(work, range(min(threads, len(targets)))))
    return out
