"""One run: a float reference and any number of artefacts on identical tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import CheckpointError, DiskError, ModelError, UsageError
from qwen3q.evaluate.artefact import Artefact, file_facts
from qwen3q.evaluate.backends import Backend, BackendOptions, LogitRows, open_backend
from qwen3q.evaluate.chunks import Scored, summarize
from qwen3q.evaluate.fidelity import (
    Fidelity,
    TokenScores,
    Workspace,
    compare_rows,
    fidelity_from,
    summarize_fidelity,
)
from qwen3q.evaluate.reference import ReferenceKey, ReferenceLogits, write_reference
from qwen3q.evaluate.resume import LOGITS_NAME, Kept
from qwen3q.evaluate.tokens import open_codec, require_same_tokenizer
from qwen3q.evaluate.windows import DocumentWindows, text_chunks, text_digest
from qwen3q.files import require_free_space
from qwen3q.progress import ProgressFn, silent


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What is measured on.

    Attributes:
        context: tokens per chunk.
        max_chunks: None for the whole text.
        parse_special: read ``<|im_start|>`` and the like as tokens.
        scored: the second half of each chunk, or all of it.
    """

    context: int = 512
    max_chunks: int | None = None
    parse_special: bool = False
    scored: Scored = Scored.HALF

    @property
    def first(self) -> int:
        """The first position that is scored."""
        return self.context // 2 if self.scored is Scored.HALF else 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One artefact's figures.

    Attributes:
        fidelity: against the reference; None where nothing can be measured.
        backend: what ran it.
        seconds: loading included.
        missing: why figures are None: a sentence for ``kl``, ``top1`` or ``perplexity``.
    """

    artefact: Artefact
    fidelity: Fidelity | None
    backend: Mapping[str, Any]
    seconds: float
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReferenceFacts:
    """The float model of a run.

    Attributes:
        backend: what ran it, now or in the earlier call that stored its logits.
        logits_bytes: size of its stored logits.
        seconds: that computing them took, loading included.
    """

    artefact: Artefact
    key: ReferenceKey
    perplexity: float
    perplexity_stderr: float
    backend: Mapping[str, Any]
    logits_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """Everything measured in one call."""

    reference: ReferenceFacts
    results: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    """The part of ``Measured`` that is kept."""

    fidelity: Fidelity
    backend: dict[str, Any]
    seconds: float


def measure_fidelity(
    reference: Artefact,
    artefacts: Sequence[Artefact],
    text: str | DocumentWindows,
    options: TextOptions | None = None,
    backend: BackendOptions | None = None,
    *,
    out: Path | None = None,
    kept: Kept | None = None,
    progress: ProgressFn = silent,
) -> Run:
    """Holds every artefact against ``reference`` on the same tokens.

    Args:
        out: folder that keeps the reference's logits for the next run; None to keep none.
        kept: what earlier calls measured, and where this one's figures are kept.

    Raises:
        ModelError: an artefact has another tokenizer or vocabulary.
        UsageError: the text is too short, or ``out`` holds logits of something else.
        DiskError: there is too little room for the reference's logits.
        Qwen3qError: a model can't be run.
    """
    options, backend = options or TextOptions(), backend or BackendOptions()
    kept = kept or Kept(None)
    if options.context < 4:
        raise UsageError(f"context {options.context} scores no token; at least 4.")
    for artefact in artefacts:
        require_same_tokenizer(reference, artefact)
    codec = open_codec(reference)
    if options.context > codec.trained_context > 0:
        kept.notes.append(
            f"Chunks of {options.context:,} tokens are beyond the {codec.trained_context:,} that "
            f"{reference.name} was trained on: perplexity past those says little."
        )
    chunks = text_chunks(
        text, codec, options.context, options.max_chunks, parse_special=options.parse_special
    )
    with ThreadPoolExecutor(backend.thread_count) as pool, _folder(out) as folder:
        facts = _reference(
            reference, chunks, codec.vocab_size, text, options, backend, folder, pool, progress
        )
        kept.fits = True
        with ReferenceLogits(folder / LOGITS_NAME) as stored:
            results = tuple(_measure(a, stored, backend, pool, kept, progress) for a in artefacts)
    return Run(facts, results)


def _measure(
    artefact: Artefact,
    stored: ReferenceLogits,
    options: BackendOptions,
    pool: ThreadPoolExecutor,
    kept: Kept,
    progress: ProgressFn,
) -> Measured:
    """One artefact's figures, measured or taken from an earlier call."""
    if artefact.endpoint is not None:
        return _ask(artefact, stored, progress)
    plain = kept.get(
        artefact,
        "fidelity",
        (stored.key, replace(options, threads=None)),
        lambda: asdict(_compare(artefact, stored, options, pool, progress)),
    )
    fidelity = fidelity_from(plain["fidelity"])
    return Measured(artefact, fidelity, plain["backend"], plain["seconds"])


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="qwen3q-eval-") as folder:
        yield Path(folder)


def _reference(
    artefact: Artefact,
    chunks: NDArray[np.int32],
    vocabulary: int,
    text: str | DocumentWindows,
    options: TextOptions,
    backend: BackendOptions,
    folder: Path,
    pool: ThreadPoolExecutor,
    progress: ProgressFn,
) -> ReferenceFacts:
    """Computes and stores the reference's logits, unless the folder has them."""
    started = perf_counter()
    path = folder / LOGITS_NAME
    key = ReferenceKey(
        model=_model_hash(artefact, backend),
        tokenizer=artefact.tokenizer,
        text=text_digest(text),
        chunks=len(chunks),
        context=options.context,
        first=options.first,
        vocab_size=vocabulary,
        parse_special=options.parse_special,
    )
    if path.exists():
        with ReferenceLogits(path) as stored:
            stored.require(key)
    else:
        with _telling_room(key):
            require_free_space(folder, key.most_bytes)
        with _reading(artefact), open_backend(artefact, backend, options.context) as model:
            label = _label(progress, f"{artefact.name} (reference)")
            rows = _rows(artefact, model.logits(chunks, key.first, label))
            with _telling_room(key):
                write_reference(path, key, chunks, rows, pool, model.facts, started)
    with ReferenceLogits(path) as stored:
        ran = stored.backend
        perplexity, stderr = summarize(stored.nll)
        nbytes = stored.nbytes
        seconds = perf_counter() - started if stored.seconds is None else stored.seconds
    return ReferenceFacts(artefact, key, perplexity, stderr, ran, nbytes, seconds)


@contextmanager
def _telling_room(key: ReferenceKey) -> Iterator[None]:
    """Tells how much room the logits may take where they can't be written."""
    try:
        yield
    except DiskError as error:
        error.hint = (
            f"Logits of {key.rows:,} positions take up to {key.most_bytes / 1e9:.2f} GB: "
            "give --out a folder with so much room, or read less with --max-chunks."
        )
        raise


def _compare(
    artefact: Artefact,
    stored: ReferenceLogits,
    options: BackendOptions,
    pool: ThreadPoolExecutor,
    progress: ProgressFn,
) -> _Compared:
    started = perf_counter()
    with _reading(artefact), open_backend(artefact, options, stored.key.context) as model:
        if model.vocab_size != stored.key.vocab_size:
            raise ModelError(
                f"{artefact.name} has {model.vocab_size} vocabulary rows, the reference "
                f"{stored.key.vocab_size}.",
                "Give the float model that it was made from as --reference.",
            )
        label = _label(progress, artefact.name)
        scores = score(model, stored, pool, options.thread_count, label)
        facts = model.facts
    fidelity = summarize_fidelity(scores, stored.nll)
    return _Compared(fidelity, dict(facts), perf_counter() - started)


def _ask(artefact: Artefact, stored: ReferenceLogits, progress: ProgressFn) -> Measured:
    """What an endpoint says about the same tokens; whole distributions it never gives."""
    from qwen3q.evaluate.endpoint_backend import EndpointBackend, no_scores

    endpoint = artefact.endpoint
    assert endpoint is not None
    missing = {"kl": "An endpoint gives no whole distributions, so there is no KL divergence."}
    if endpoint.scorer is None:
        missing["perplexity"] = f"{no_scores(endpoint)}, so there is no perplexity."
        return Measured(artefact, None, endpoint.facts, 0.0, missing)
    started = perf_counter()
    # one token more, as servers generate at least one
    with EndpointBackend(artefact, stored.key.context + 1) as model:
        rows = list(model.scores(stored.chunks, stored.key.first, _label(progress, artefact.name)))
    nll = -np.concatenate([row.log_probabilities for row in rows])
    tops = [row.top for row in rows if row.top is not None]
    same_top = np.concatenate(tops) == stored.top if len(tops) == len(rows) else None
    if same_top is None:
        missing["top1"] = f"The server ({endpoint.server}) does not tell the likeliest token."
    change = np.exp(-nll) - np.exp(-stored.nll)
    fidelity = summarize_fidelity(TokenScores(nll, None, change, same_top), stored.nll)
    return Measured(artefact, fidelity, model.facts, perf_counter() - started, missing)


def score(
    model: Backend,
    stored: ReferenceLogits,
    pool: ThreadPoolExecutor,
    threads: int,
    progress: ProgressFn = silent,
) -> TokenScores:
    """Every scored position of ``model`` against the stored reference.

    Args:
        threads: of the pool.
    """
    key = stored.key
    spaces = [Workspace(key.vocab_size, key.block_rows) for _ in range(threads)]
    out = TokenScores.empty(stored.key.rows)
    nll, top, targets = stored.nll, stored.top, stored.targets
    for start, values in model.logits(stored.chunks, stored.key.first, progress):
        spans = list(stored.spans(start, start + len(values)))

        def work(
            number: int,
            spans: list[slice] = spans,
            start: int = start,
            logits: NDArray[np.float32] = values,
        ) -> None:
            space = spaces[number]
            for rows in spans[number::threads]:
                compare_rows(
                    logits[rows.start - start : rows.stop - start],
                    stored.log_probabilities(rows, space.reference),
                    nll[rows],
                    top[rows],
                    targets[rows],
                    out,
                    rows,
                    space,
                )

        list(pool.map(work, range(threads)))
    return out


@contextmanager
def _reading(artefact: Artefact) -> Iterator[None]:
    """Tells what the system says while the model's files are read."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Can't read {error.filename or artefact.path}: {error.strerror or error}."
        ) from None


def _rows(artefact: Artefact, logits: Iterator[LogitRows]) -> Iterator[LogitRows]:
    """The same, so that who writes them does not take a failure to read for its own."""
    with _reading(artefact):
        yield from logits


def _model_hash(artefact: Artefact, backend: BackendOptions) -> str:
    """Changes when the reference's files or what runs them do."""
    facts = (str(artefact.path.resolve()), file_facts(artefact), str(backend.kind))
    return sha256(repr(facts).encode()).hexdigest()


def _label(progress: ProgressFn, name: str) -> ProgressFn:
    """Reports under the artefact's name, so that each has its bar."""
    return lambda done, total, _: progress(done, total, name)
