"""An endpoint as a backend: it continues prompts and, where it can, scores their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.evaluate.artefact import Artefact, vocab_size
from qwen3q.evaluate.backends import LogitRows
from qwen3q.evaluate.endpoint import Endpoint
from qwen3q.evaluate.endpoint_generate import Answer, Generation, Request
from qwen3q.evaluate.endpoint_http import MALFORMED, Client, EndpointError
from qwen3q.evaluate.endpoint_scores import PromptScores
from qwen3q.evaluate.sampling import FinishedFn, GrownFn, Prompt, ignore, unwatched
from qwen3q.evaluate.tokens import open_codec
from qwen3q.progress import ProgressFn, silent

IN_FLIGHT = 4
"""Chunks that a server is asked to score at a time."""

_ROUNDS = 8

_PIECE = 64
"""Tokens asked for at a time where the prompt may end them."""

_SEEDS = 1 << 31


class ScoredRows(NamedTuple):
    """What a server says about the scored positions of one chunk.

    Attributes:
        log_probabilities: of the text's next token, float64 ``[rows]``, nats.
        top: the likeliest token, int32 ``[rows]``; None if the server does not tell.
    """

    log_probabilities: NDArray[np.float64]
    top: NDArray[np.int32] | None


class EndpointBackend(Closing):
    """A served model, asked in our own tokens."""

    def __init__(self, artefact: Artefact, context: int) -> None:
        """Checks that the server takes ``context`` tokens.

        Raises:
            EndpointError: it takes fewer.
        """
        assert artefact.endpoint is not None
        self.endpoint: Endpoint = artefact.endpoint
        self.facts: Mapping[str, Any] = self.endpoint.facts
        self._artefact = artefact
        self._context = context
        self._codec = open_codec(artefact)
        require_context(artefact, context)

    @property
    def vocab_size(self) -> int:
        return vocab_size(self._artefact)

    def logits(
        self, chunks: NDArray[np.int32], first: int, progress: ProgressFn = silent
    ) -> Iterator[LogitRows]:
        raise EndpointError(
            f"{self._artefact.name} gives no logits; an endpoint never does.",
            "Measure the model's folder or GGUF file.",
        )

    def scores(
        self, chunks: NDArray[np.int32], first: int, progress: ProgressFn = silent
    ) -> Iterator[ScoredRows]:
        """Each chunk's scored positions ``first .. context - 2``, chunk by chunk.

        Args:
            chunks: int32 ``[chunks, context]``; each is asked for by itself.

        Raises:
            EndpointError: the server gives no log-probabilities of a prompt, or fails.
        """
        for done, told in enumerate(self.score(chunks.tolist()), 1):
            top = None if told.top is None else told.top[first:]
            yield ScoredRows(told.log_probabilities[first:], top)
            progress(done, len(chunks), "log-probabilities")

    def score(self, prompts: Sequence[Sequence[int]]) -> Iterator[PromptScores]:
        """What the server says about each prompt, in order; some are asked for at a time.

        Raises:
            EndpointError: the server gives no log-probabilities of a prompt, or fails.
        """
        if self.endpoint.scorer is None:
            raise EndpointError(f"{no_scores(self.endpoint)}.")
        client = self.endpoint.client()
        with _asking(client, IN_FLIGHT) as pool:
            yield from pool.map(partial(self._score, client), prompts)

    def _score(self, client: Client, tokens: Sequence[int]) -> PromptScores:
        scorer = self.endpoint.scorer
        assert scorer is not None
        reply = client.post(
            self._path(scorer.native, scorer.path), scorer.body(self.endpoint.model, tokens)
        )
        try:
            return scorer.read(reply, tokens)
        except MALFORMED:
            raise EndpointError(
                f"{self._artefact.name} did not answer {len(tokens)} tokens with as many "
                "log-probabilities."
            ) from None

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        stop_tokens: frozenset[int],
        finished: FinishedFn = ignore,
        grown: GrownFn = unwatched,
    ) -> list[list[int]]:
        """As ``Backend.generate``; as many at a time as such a server works on side by side.

        The server does not tell how far it is, so ``grown`` is told what the pace of the answer
        that just ended makes of the others' time.

        Raises:
            EndpointError: the server takes no prompts of ours, or fails.
        """
        require_generation(self._artefact)
        way = self.endpoint.generation
        assert way is not None

        client = self.endpoint.client()

        begun: dict[int, float] = {}

        def answer(place: int) -> list[int]:
            begun[place] = monotonic()
            return self._answer(client, prompts[place], max_tokens, stop_tokens, way)

        made: list[list[int]] = [[] for _ in prompts]
        with _asking(client, way.side_by_side) as pool:
            asked = {pool.submit(answer, place): place for place in range(len(prompts))}
            for done in as_completed(asked):
                place = asked[done]
                made[place] = done.result()
                finished(place, made[place])
                now = monotonic()
                pace = len(made[place]) / max(now - begun.pop(place), 1e-9)
                for other, since in tuple(begun.items()):
                    most = prompts[other].limit(max_tokens) - 1
                    grown(other, min(int(pace * (now - since)), most))
        return made

    def _answer(
        self,
        client: Client,
        prompt: Prompt,
        max_tokens: int,
        stop_tokens: frozenset[int],
        way: Generation,
    ) -> list[int]:
        """One continuation, in as many requests as it takes.

        A server that gives only text is asked again where its text, encoded, has fewer tokens
        than it was asked for and it was cut.
        """
        made: list[int] = []
        max_tokens = prompt.limit(max_tokens)
        piece = max_tokens if prompt.ended is None else _PIECE
        for _ in range(_ROUNDS + max_tokens // piece):
            wanted = min(piece, max_tokens - len(made))
            seed = (prompt.sampling.seed + len(made)) % _SEEDS
            request = Request(
                model=self.endpoint.model,
                tokens=[*prompt.tokens, *made],
                text=self._codec.spell([*prompt.tokens, *made]),
                max_tokens=wanted,
                stop_tokens=stop_tokens,
                sampling=replace(prompt.sampling, seed=seed),
                context=self._context,
            )
            answer = self._ask(client, request, way)
            self._require_whole(request, answer)
            told = answer.tokens or self._codec.encode(answer.text, parse_special=True).tolist()
            more = _before_stop(list(told), stop_tokens)
            made += more
            if answer.looped:
                return _endless(made or list(prompt.tokens), made, max_tokens)
            if len(more) < len(told) or not answer.cut:
                # it ended by itself, whatever its tokens count here
                return made[: max_tokens - 1]
            over = prompt.ended is not None and prompt.ended(made)
            if not told or over or len(made) >= max_tokens:
                break
        return made[:max_tokens]

    def _require_whole(self, request: Request, answer: Answer) -> None:
        """Refuses an answer to a part of the prompt.

        Tokens of an answer, spelled and encoded again, may be fewer than they were.
        """
        read = answer.prompt_tokens
        if read is None or read >= len(request.tokens):
            return
        if read < len(self._codec.encode(request.text, parse_special=True)):
            raise EndpointError(
                f"{self._artefact.name} read {read:,} of a prompt's {len(request.tokens):,} "
                "tokens.",
                "Serve it with a longer context, or choose a smaller --max-tokens.",
            )

    def _ask(self, client: Client, request: Request, way: Generation) -> Answer:
        reply = client.post(self._path(way.native, way.path), way.body(request))
        try:
            return way.read(reply)
        except MALFORMED:
            raise EndpointError(
                f"{self._artefact.name} answers with what is no completion."
            ) from None

    def _path(self, native: bool, path: str) -> str:
        address = self.endpoint.address
        return (address.root if native else address.base) + path

    def close(self) -> None:
        """Nothing is held open."""


@contextmanager
def _asking(client: Client, size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that ask side by side; a failure of one, or Ctrl-C, breaks off what all ask."""
    with ThreadPoolExecutor(size) as pool:
        try:
            yield pool
        except GeneratorExit:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.abandon()
            raise


def require_generation(artefact: Artefact) -> None:
    """Checks that an endpoint can be asked questions; nothing for other artefacts.

    Raises:
        EndpointError: it can't.
    """
    if artefact.endpoint is not None and artefact.endpoint.generation is None:
        raise EndpointError(
            f"{artefact.name} continues neither our tokens nor plain text, so it can't be asked "
            "in the model's own chat template.",
            "It needs /v1/completions without a template of its own.",
        )


def require_context(artefact: Artefact, tokens: int) -> None:
    """Checks that an endpoint takes so many tokens; nothing for other artefacts.

    Raises:
        EndpointError: it takes fewer.
    """
    most = None if artefact.endpoint is None else artefact.endpoint.context
    if most is not None and tokens > most:
        raise EndpointError(
            f"{artefact.name} takes {most:,} tokens, but {tokens:,} are needed.",
            "Serve it with a longer context, or choose a smaller --context or --max-tokens.",
        )


def no_scores(endpoint: Endpoint) -> str:
    """Why there is no perplexity."""
    return f"The server ({endpoint.server}) gives no log-probabilities of a prompt's tokens"


def _endless(repeated: Sequence[int], made: list[int], max_tokens: int) -> list[int]:
    """What was made before a server gave up, and on to the end in place of what it kept saying."""
    return (made + [repeated[-1]] * max_tokens)[:max_tokens]


def _before_stop(tokens: list[int], stop_tokens: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stop_tokens), len(tokens))
    return tokens[:end]
