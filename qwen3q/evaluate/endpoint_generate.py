"""Continuing a prompt of our own tokens, in the ways in which servers take and give them.

The prompt is rendered and encoded here, so thinking modes are the same whatever runs the model.
Servers that answer in tokens are asked for them; text is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3q.evaluate.endpoint_ollama import GENERATE, raw_body
from qwen3q.evaluate.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """What is continued.

    Attributes:
        tokens: the prompt.
        text: the same, spelled with its control tokens.
        stop_tokens: end the answer, beside what the server itself knows.
        context: tokens of the longest prompt and answer; the same in every request, as a server
            that loads the model for each new one would be slow.
    """

    model: str
    tokens: Sequence[int]
    text: str
    max_tokens: int
    stop_tokens: frozenset[int]
    sampling: Sampling
    context: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        tokens: None where the server gives only text.
        cut: it ended at ``max_tokens``, not by itself.
        prompt_tokens: how many tokens the server read; None if it does not tell.
        looped: the server gave it up for repeating itself; it would not have ended.
    """

    tokens: tuple[int, ...] | None
    text: str
    cut: bool
    prompt_tokens: int | None
    looped: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One way of asking.

    Attributes:
        name: how reports call it.
        native: whether the path is the server's own, not under ``/v1``.
        body: the request.
        read: the answer; raises LookupError, TypeError or ValueError if it is none.
        gives_tokens: an answer without tokens means that the server does not know this way.
        side_by_side: answers that such a server makes at a time; others wait for their turn, and
            the waiting counts against the time that an answer may take.
    """

    name: str
    native: bool
    path: str
    body: Callable[[Request], dict[str, Any]]
    read: Callable[[Any], Answer]
    gives_tokens: bool = True
    side_by_side: int = 1


def _completion_body(request: Request) -> dict[str, Any]:
    """``/v1/completions`` on token ids, with what vLLM takes beyond OpenAI's."""
    sampling = request.sampling
    return _plain_body(request) | {
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(request.stop_tokens),
        "return_token_ids": True,
    }


def _plain_body(request: Request) -> dict[str, Any]:
    """``/v1/completions`` on token ids, with OpenAI's own parameters only."""
    sampling = request.sampling
    return {
        "model": request.model,
        "prompt": list(request.tokens),
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "seed": sampling.seed,
    }


def _text_body(request: Request) -> dict[str, Any]:
    return _plain_body(request) | {"prompt": request.text}


def _completion_read(reply: Any) -> Answer:
    choice = reply["choices"][0]
    told = choice.get("token_ids")
    tokens = None if told is None else _tokens(told)
    cut = choice["finish_reason"] == "length"
    return Answer(tokens, _text(choice["text"]), cut, reply["usage"]["prompt_tokens"])


def _llama_body(request: Request) -> dict[str, Any]:
    """llama-server's ``/completion``."""
    return {
        "prompt": list(request.tokens),
        "n_predict": request.max_tokens,
        "cache_prompt": False,
        "return_tokens": True,
        **_llama_sampling(request.sampling),
    }


def _llama_sampling(sampling: Sampling) -> dict[str, float]:
    """llama.cpp's names, which Ollama has too; neither server's own defaults are left to act."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "repeat_penalty": 1.0,
        "seed": sampling.seed,
    }


def _llama_read(reply: Any) -> Answer:
    cut, read = reply["stop_type"] == "limit", reply["tokens_evaluated"]
    return Answer(_tokens(reply["tokens"]), _text(reply["content"]), cut, read)


def _sglang_body(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    return {
        "input_ids": list(request.tokens),
        "sampling_params": {
            "max_new_tokens": request.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "sampling_seed": sampling.seed,
            "stop_token_ids": sorted(request.stop_tokens),
            "skip_special_tokens": False,
        },
    }


def _sglang_read(reply: Any) -> Answer:
    facts = reply["meta_info"]
    cut = facts["finish_reason"]["type"] == "length"
    return Answer(_tokens(reply["output_ids"]), _text(reply["text"]), cut, facts["prompt_tokens"])


def _ollama_body(request: Request) -> dict[str, Any]:
    options = {"num_predict": request.max_tokens, **_llama_sampling(request.sampling)}
    body = raw_body(request.model, request.text, request.context, options)
    return {**body, "stream": False}


def _ollama_read(reply: Any) -> Answer:
    """An answer that is not ``done`` was given up: Ollama ends those that repeat themselves."""
    text, read = _text(reply["response"]), reply.get("prompt_eval_count")
    if reply["done"] is False:
        return Answer(None, text, True, read, looped=True)
    return Answer(None, text, reply["done_reason"] == "length", read)


_BATCHED = 16
"""Of servers that batch what arrives while they work."""

GENERATIONS = (
    Generation("tokens", False, "/completions", _completion_body, _completion_read, True, _BATCHED),
    Generation("llama-server", True, "/completion", _llama_body, _llama_read),
    Generation("SGLang", True, "/generate", _sglang_body, _sglang_read, True, _BATCHED),
    Generation("Ollama", True, GENERATE, _ollama_body, _ollama_read, False),
    Generation("prompt tokens", False, "/completions", _plain_body, _completion_read, False),
    Generation("prompt text", False, "/completions", _text_body, _completion_read, False),
)
"""In the order in which a server is asked for them."""


def _tokens(told: Any) -> tuple[int, ...]:
    if not isinstance(told, list) or any(type(token) is not int for token in told):
        raise TypeError
    return tuple(told)


def _text(told: Any) -> str:
    if not isinstance(told, str):
        raise TypeError
    return told
