"""Perplexity of a GGUF model on a text, by llama-perplexity's definition or over full contexts.

The text's tokens are cut into chunks of ``context`` tokens, each read by itself; perplexity is
exp of the mean negative log-likelihood of the scored tokens (``tools/perplexity/perplexity.cpp``).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
        raise UsageError(f"context {context} scores no token; at least 2.")
    needed = None if max_chunks is None else max_chunks * context
    encode = partial(model.tokenize, add_special=True, parse_special=parse_special)
    tokens = encode_beginning(text, needed, encode)
    chunks = split_chunks(tokens, context, max_chunks, model.bos if model.add_bos else None)
    workers = threads or default_threads()
    side_by_side = max(1, min(BATCH_TOKENS // context, len(chunks)))
    options = ContextOptions(
        context=context,
        sequences=side_by_side,
        batch=min(BATCH_TOKENS, context * side_by_side),
        ubatch=min(BATCH_TOKENS, context * side_by_side),
        threads=threads,
        key_type=key_type,
        value_type=value_type,
    )
    started = perf_counter()
    with LlamaContext(model, options) as llama, ThreadPoolExecutor(workers) as pool:
        first = context // 2 if scored is Scored.HALF else 0
        nlls = score_chunks(llama, chunks, first, pool, workers, progress)
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


def score_chunks(
    llama: LlamaContext,
    chunks: NDArray[np.int32],
    first: int,
    pool: ThreadPoolExecutor,
    threads: int,
    progress: ProgressFn = silent,
) -> NDArray[np.float64]:
    """Negative log-likelihoods of each chunk's tokens after position ``first``.

    Returns:
        float64 ``[chunks, context - 1 - first]``, in nats.
    """
    count, context = chunks.shape
    out = np.empty((count, context - 1 - first))
    step = min(context, llama.batch_size)
    for group_start in range(0, count, llama.sequences):
        group = chunks[group_start : group_start + llama.sequences]
        llama.clear()
        for start in range(0, context, step):
            positions = np.arange(start, min(start + step, context), dtype=np.int32)
            wanted = (positions >= first) & (positions < context - 1)
            llama.decode(
                group[:, positions].ravel(),
                np.tile(positions, len(group)),
                sequences=np.repeat(np.arange(len(group), dtype=np.int32), len(positions)),
                outputs=np.tile(wanted, len(group)),
            )
            scored = positions[wanted]
            if scored.size:
                targets = group[:, scored + 1].ravel()
                nlls = negative_log_likelihoods(llama.logits(), targets, pool, threads)
                rows = slice(group_start, group_start + len(group))
                out[rows, scored - first] = nlls.reshape(len(group), -1)
        progress(group_start + len(group), count, "perplexity")
    return out


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
