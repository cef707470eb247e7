"""How fast an endpoint answers several clients at once: first token, between tokens, in sum.

Every client asks for one answer after another (a closed loop) and reads it as server-sent events.
A request's clock starts when it is sent on an open connection, and is read when a piece of text
has arrived, before it is parsed.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from qwen3q.counts import counted
from qwen3q.errors import UsageError
from qwen3q.evaluate.endpoint import PROBE_TEXT, Endpoint, check_tokenizer
from qwen3q.evaluate.endpoint_http import Client, EndpointError
from qwen3q.evaluate.endpoint_ollama import OLLAMA
from qwen3q.evaluate.streaming_prompts import Prompt, make_prompts
from qwen3q.evaluate.streaming_ways import OLLAMA_WAY, WAYS, Asked, Clock, Way
from qwen3q.evaluate.tokens import TextCodec
from qwen3q.progress import ProgressFn, silent

MAX_CLIENTS = 512
_WARM_UP_TOKENS = 8
_EACH = 4


@dataclass(frozen=True, slots=True)
class StreamingOptions:
    """What is asked for.

    Attributes:
        concurrency: numbers of clients, one after another.
        prompt: tokens of each prompt.
        generate: tokens of each answer, as far as the server goes on past its end.
        requests: answers per number of clients; None for four from each.
        seed: of the prompts; None draws one, as a server may still hold those of an earlier call.
    """

    concurrency: tuple[int, ...] = (1, 4)
    prompt: int = 512
    generate: int = 64
    requests: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises: UsageError: a number that makes no sense."""
        for clients in self.concurrency:
            if not 1 <= clients <= MAX_CLIENTS:
                raise UsageError(
                    f"--concurrency {clients}: clients are 1 to {MAX_CLIENTS} at a time."
                )
        if not self.concurrency:
            raise UsageError("No number of clients is given.", "Such as --concurrency 4.")
        if self.generate < 2:
            raise UsageError(f"--generate {self.generate}: it takes 2 tokens to time between them.")

    def count(self, clients: int) -> int:
        return self.requests or _EACH * clients


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer's times, seconds of one clock.

    Attributes:
        sent: the request went out.
        times: each piece of text arrived.
        prompt_tokens, generated: as the server counts; None if it does not tell.
        failure: why it is no answer; empty if it is one.
    """

    sent: float
    times: tuple[float, ...]
    prompt_tokens: int | None
    generated: int | None
    failure: str = ""

    @property
    def tokens(self) -> int:
        """Tokens generated, or pieces of text where the server does not count."""
        return len(self.times) if self.generated is None else self.generated


@dataclass(frozen=True, slots=True)
class Level:
    """All answers at one number of clients; ``seconds`` from the first request to the last end."""

    clients: int
    streams: tuple[Stream, ...]
    seconds: float


def stream_endpoint(
    endpoint: Endpoint,
    codec: TextCodec,
    options: StreamingOptions,
    progress: ProgressFn = silent,
) -> list[dict[str, Any]]:
    """Rows of ``report.json``'s ``streaming``, one per number of clients.

    Raises:
        ModelError: the server's tokenizer is another.
        UsageError, EndpointError: as ``measure_streaming``.
    """
    tokens = codec.encode(PROBE_TEXT, parse_special=True).tolist()
    checked = check_tokenizer(endpoint, PROBE_TEXT, tokens)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    facts = {
        "run": 0,
        "artefact": endpoint.name,
        "format": f"endpoint:{endpoint.server}",
        "file_bytes": None,
        "tokenizer_checked": checked,
        "seed": seed,
    }
    levels = measure_streaming(endpoint, codec, replace(options, seed=seed), progress)
    return [facts | level_row(level, options) for level in levels]


def measure_streaming(
    endpoint: Endpoint,
    codec: TextCodec,
    options: StreamingOptions,
    progress: ProgressFn = silent,
    clock: Clock = perf_counter,
) -> list[Level]:
    """Asks ``endpoint`` with every number of clients; a failed request counts, and is not repeated.

    Raises:
        UsageError: more tokens than the server takes.
        EndpointError: the server can't be reached or streams nothing.
    """
    longest = options.prompt + options.generate
    if endpoint.context is not None and longest > endpoint.context:
        raise UsageError(
            f"{endpoint.name} takes {endpoint.context:,} tokens, but {longest:,} are needed.",
            "Choose a smaller --prompt or --generate, or serve it with a longer context.",
        )
    counts = [options.count(clients) for clients in options.concurrency]
    wanted = sum(counts) + sum(options.concurrency) + len(_ways(endpoint))
    prompts = iter(make_prompts(codec, options.prompt, wanted, options.seed or 0))
    client = endpoint.client()

    def asked(prompt: Prompt, tokens: int) -> Asked:
        return Asked(endpoint.model, prompt, tokens, longest)

    way = _find_way(client, endpoint, (asked(prompt, 2) for prompt in prompts), clock)
    levels: list[Level] = []
    total = sum(counts)
    for clients, count in zip(options.concurrency, counts, strict=True):

        def ask(prompt: Prompt, tokens: int = options.generate) -> Stream:
            return _stream(client, endpoint, way, way.body(asked(prompt, tokens)), clock)

        with ThreadPoolExecutor(clients) as pool:
            warm_up = [next(prompts) for _ in range(clients)]
            list(pool.map(lambda prompt: ask(prompt, _WARM_UP_TOKENS), warm_up))
            streams = []
            started = clock()
            for stream in pool.map(ask, [next(prompts) for _ in range(count)]):
                streams.append(stream)
                done = sum(len(level.streams) for level in levels) + len(streams)
                progress(done, total, f"{endpoint.name}: clients")
            levels.append(Level(clients, tuple(streams), clock() - started))
    return levels


def level_row(level: Level, options: StreamingOptions) -> dict[str, Any]:
    """A level as ``report.json``'s ``streaming`` has it; figures are null where all failed."""
    good = [stream for stream in level.streams if not stream.failure]
    failures = Counter(stream.failure for stream in level.streams if stream.failure)
    generated = sum(stream.tokens for stream in good)
    gaps = [b - a for s in good for a, b in zip(s.times, s.times[1:], strict=False)]
    rates = [
        (s.tokens - 1) / (s.times[-1] - s.times[0])
        for s in good
        if s.tokens > 1 and s.times[-1] > s.times[0]
    ]
    told = [s.prompt_tokens for s in good if s.prompt_tokens is not None]
    return {
        "concurrency": level.clients,
        "requests": len(level.streams),
        "failed": len(level.streams) - len(good),
        "failures": dict(failures),
        "prompt_tokens": options.prompt,
        "prompt_tokens_read": int(np.median(told)) if told else None,
        "generate": options.generate,
        "generated_tokens": generated,
        "pieces": sum(len(s.times) for s in good),
        "seconds": level.seconds,
        "tokens_per_second": generated / level.seconds if generated else None,
        "request_tokens_per_second": float(np.median(rates)) if rates else None,
        "first_token_ms": _percentiles([s.times[0] - s.sent for s in good]),
        "between_ms": _percentiles(gaps),
    }


def require_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to take a few answers for a measurement.

    Args:
        rows: as ``level_row``'s.

    Raises:
        EndpointError: at a number of clients more than half of the requests failed.
    """
    for row in rows:
        if 2 * row["failed"] > row["requests"]:
            reason = max(row["failures"], key=row["failures"].__getitem__)
            raise EndpointError(
                f"{row['failed']} of {counted(row['requests'], 'request')} failed with "
                f"{counted(row['concurrency'], 'client')}, most of them so: {reason}",
                "The server's log may say more; --concurrency with fewer clients asks less of it.",
            )


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds, linear between order statistics."""
    if not seconds:
        return None
    p50, p95, p99 = 1e3 * np.quantile(seconds, (0.5, 0.95, 0.99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def _stream(
    client: Client, endpoint: Endpoint, way: Way, body: dict[str, Any], clock: Clock
) -> Stream:
    """One answer; a failure is part of it."""
    times: list[float] = []
    sent = clock()
    base = endpoint.address.root if way.native else endpoint.address.base
    try:
        with client.stream(base + way.path, body) as lines:
            sent = clock()
            counts = way.read(lines, times, clock)
    except EndpointError as error:
        return Stream(sent, tuple(times), None, None, error.message)
    if not counts.finished or not times:
        why = "The answer broke off." if times else "The answer held no text."
        return Stream(sent, tuple(times), None, None, why)
    return Stream(sent, tuple(times), counts.prompt, counts.generated)


def _find_way(client: Client, endpoint: Endpoint, asks: Iterator[Asked], clock: Clock) -> Way:
    """The fullest way in which the server answers.

    Raises:
        EndpointError: it answers in none.
    """
    failure = ""
    for way in _ways(endpoint):
        tried = _stream(client, endpoint, way, way.body(next(asks)), clock)
        if not tried.failure:
            return way
        failure = tried.failure
    raise EndpointError(
        f"{endpoint.name} streams no completions: {failure}", "The server's log may say more."
    )


def _ways(endpoint: Endpoint) -> tuple[Way, ...]:
    """Ollama's own alone there: its ``/v1/completions`` puts a template around the prompt, and cuts
    what is too long without a word."""
    return (OLLAMA_WAY,) if endpoint.server == OLLAMA else WAYS
