"""How fast an endpoint answers several clients at once: first token, between tokens, in sum.

Every client asks for one answer after another (a closed loop) and reads it as server-sent events.
A request's clock starts when it is sent on an open connection, and is read when a piece of text
has arrived, before it is parsed.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from qwen3q.errors import UsageError
from qwen3q.evaluate.endpoint import PROBE_TEXT, Endpoint, check_tokenizer
from qwen3q.evaluate.endpoint_http import MALFORMED, Client, EndpointError, plain
from qwen3q.evaluate.streaming_prompts import Prompt, make_prompts
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


BodyFn = Callable[[Prompt, int], dict[str, Any]]


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
    clock: Callable[[], float] = perf_counter,
) -> list[Level]:
    """Asks ``endpoint`` with every number of clients; a failed request counts, and is not repeated.

    Raises:
        UsageError: a number that makes no sense.
        EndpointError: the server can't be reached or streams nothing.
    """
    if not options.concurrency or not all(1 <= n <= MAX_CLIENTS for n in options.concurrency):
        raise UsageError(f"Clients are 1 to {MAX_CLIENTS} at a time.")
    if options.generate < 2:
        raise UsageError(f"--generate {options.generate}: it takes 2 tokens to time between them.")
    counts = [options.count(clients) for clients in options.concurrency]
    wanted = sum(counts) + sum(options.concurrency) + len(_BODIES)
    prompts = iter(make_prompts(codec, options.prompt, wanted, options.seed or 0))
    client = endpoint.client()
    body = _find_body(client, endpoint, prompts, clock)
    levels: list[Level] = []
    total = sum(counts)
    for clients, count in zip(options.concurrency, counts, strict=True):

        def ask(prompt: Prompt, tokens: int = options.generate) -> Stream:
            return _stream(client, body(prompt, tokens), clock)

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


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds, linear between order statistics."""
    if not seconds:
        return None
    p50, p95, p99 = 1e3 * np.quantile(seconds, (0.5, 0.95, 0.99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def _stream(client: Client, body: dict[str, Any], clock: Callable[[], float]) -> Stream:
    """One answer; a failure is part of it."""
    times: list[float] = []
    sent = clock()
    try:
        with client.stream(f"{client.address.base}/completions", body) as lines:
            sent = clock()
            usage, finished = _read(lines, times, clock)
    except EndpointError as error:
        return Stream(sent, tuple(times), None, None, error.message)
    if not finished or not times:
        why = "The answer broke off." if times else "The answer held no text."
        return Stream(sent, tuple(times), None, None, why)
    return Stream(sent, tuple(times), _count(usage, "prompt"), _count(usage, "completion"))


def _read(
    lines: Any, times: list[float], clock: Callable[[], float]
) -> tuple[dict[str, Any], bool]:
    """Notes when text came; returns the server's counts, and whether the stream has its end."""
    usage: dict[str, Any] = {}
    for line in lines:
        now = clock()
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return usage, True
        try:
            event = json.loads(data)
            if "error" in event:
                raise EndpointError(f"The server says: {_said(event['error'])}.")
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                if choice.get("text") or choice.get("finish_reason") is None:
                    times.append(now)
        except (*MALFORMED, RecursionError):
            raise EndpointError("The server streams what is no completion.") from None
    return usage, False


def _said(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return plain(str(message)).rstrip(".")


def _count(usage: dict[str, Any], kind: str) -> int | None:
    told = usage.get(f"{kind}_tokens")
    return told if type(told) is int and told > 0 else None


def _find_body(
    client: Client, endpoint: Endpoint, prompts: Any, clock: Callable[[], float]
) -> BodyFn:
    """The fullest request that the server takes: tokens or text, and going on past the end.

    Raises:
        EndpointError: it takes none.
    """
    failure = ""
    for ids, further in _BODIES:

        def body(
            prompt: Prompt,
            tokens: int,
            ids: bool = ids,
            further: dict[str, Any] = further,
        ) -> dict[str, Any]:
            return {
                "model": endpoint.model,
                "prompt": list(prompt.tokens) if ids else prompt.text,
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                **further,
            }

        tried = _stream(client, body(next(prompts), 2), clock)
        if not tried.failure:
            return body
        failure = tried.failure
    raise EndpointError(
        f"{endpoint.name} streams no completions: {failure}", "The server's log may say more."
    )


_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
_BODIES: tuple[tuple[bool, dict[str, Any]], ...] = (
    (True, {**_USAGE, "ignore_eos": True}),
    (False, {**_USAGE, "ignore_eos": True}),
    (False, _USAGE),
    (False, {}),
)
