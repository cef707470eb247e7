"""How servers are asked for a stream, and how its lines are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from qwen3q.evaluate.endpoint_http import MALFORMED, EndpointError, plain
from qwen3q.evaluate.endpoint_ollama import GENERATE, raw_body
from qwen3q.evaluate.streaming_prompts import Prompt

Clock = Callable[[], float]


class Counts(NamedTuple):
    """A stream's end.

    Attributes:
        prompt, generated: tokens, as the server counts; None if it does not tell.
        finished: the stream has its end.
    """

    prompt: int | None
    generated: int | None
    finished: bool


class Asked(NamedTuple):
    """What a stream is asked for: ``tokens`` behind ``prompt``; ``context`` holds the longest."""

    model: str
    prompt: Prompt
    tokens: int
    context: int


@dataclass(frozen=True, slots=True)
class Way:
    """One way of asking.

    Attributes:
        native: whether the path is the server's own, not under ``/v1``.
        read: notes when text came.
    """

    native: bool
    path: str
    body: Callable[[Asked], dict[str, Any]]
    read: Callable[[Iterator[bytes], list[float], Clock], Counts]


def _completion_body(
    asked: Asked, *, ids: bool = False, usage: bool = True, further: bool = False
) -> dict[str, Any]:
    """``/v1/completions`` on tokens or text; ``further``: on past the answer's own end."""
    body: dict[str, Any] = {
        "model": asked.model,
        "prompt": list(asked.prompt.tokens) if ids else asked.prompt.text,
        "max_tokens": asked.tokens,
        "temperature": 0,
        "stream": True,
    }
    if usage:
        body["stream_options"] = {"include_usage": True}
    if further:
        body["ignore_eos"] = True
    return body


def _read_events(lines: Iterator[bytes], times: list[float], clock: Clock) -> Counts:
    """Server-sent events, as OpenAI's API has them."""
    usage: dict[str, Any] = {}
    for line in lines:
        now = clock()
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return Counts(_count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), True)
        with _completions():
            event = _event(data)
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                if choice.get("text") or choice.get("finish_reason") is None:
                    times.append(now)
    return Counts(None, None, False)


def _ollama_body(asked: Asked) -> dict[str, Any]:
    options = {"num_predict": asked.tokens, "temperature": 0}
    body = raw_body(asked.model, asked.prompt.text, asked.context, options)
    return {**body, "stream": True}


def _read_ollama(lines: Iterator[bytes], times: list[float], clock: Clock) -> Counts:
    """A JSON object per line, the last one ``done``."""
    for line in lines:
        now = clock()
        with _completions():
            event = _event(line)
            if event["response"]:
                times.append(now)
            if event["done"]:
                return Counts(_count(event, "prompt_eval_count"), _count(event, "eval_count"), True)
    return Counts(None, None, False)


OLLAMA_WAY = Way(True, GENERATE, _ollama_body, _read_ollama)
WAYS = tuple(
    Way(False, "/completions", body, _read_events)
    for body in (
        partial(_completion_body, ids=True, further=True),
        partial(_completion_body, further=True),
        _completion_body,
        partial(_completion_body, usage=False),
    )
)
"""The fullest first: tokens or text, and going on past the end."""


def _event(data: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        error = event["error"]
        message = error.get("message") if isinstance(error, dict) else error
        raise EndpointError(f"The server says: {plain(str(message)).rstrip('.')}.")
    return event


@contextmanager
def _completions() -> Iterator[None]:
    """Turns what reading something else raises into a sentence."""
    try:
        yield
    except (*MALFORMED, RecursionError):
        raise EndpointError("The server streams what is no completion.") from None


def _count(counts: dict[str, Any], name: str) -> int | None:
    told = counts.get(name)
    return told if type(told) is int and told > 0 else None
