"""Log-probabilities of a prompt's own tokens, in the three ways in which servers give them.

vLLM: ``prompt_logprobs`` of ``/v1/completions``. SGLang: ``return_logprob`` of ``/generate``.
Others: ``echo`` with ``logprobs``, as OpenAI's completions had it. None gives whole rows of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMPOSSIBLE = -1000.0
"""Below this a log-probability stands for minus infinity, which JSON has no word for."""


@dataclass(frozen=True, slots=True)
class PromptScores:
    """What a server says about tokens ``1 ..`` of a prompt, in order.

    Attributes:
        log_probabilities: of the prompt's own tokens, float64 ``[tokens - 1]``, nats.
        top: the likeliest token at each place, int32 ``[tokens - 1]``; None if not told.
    """

    log_probabilities: NDArray[np.float64]
    top: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class Scorer:
    """One way of asking.

    Attributes:
        name: how reports call it.
        native: whether the path is the server's own, not under ``/v1``.
        body: the request for a model's name and tokens.
        read: the scores in an answer; raises LookupError, TypeError or ValueError if it has none.
    """

    name: str
    native: bool
    path: str
    body: Callable[[str, Sequence[int]], dict[str, Any]]
    read: Callable[[Any, Sequence[int]], PromptScores]


def _vllm_body(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    return _completion(model, tokens) | {"prompt_logprobs": 1}


def _vllm_read(reply: Any, tokens: Sequence[int]) -> PromptScores:
    places: list[Mapping[str, Any]] = reply["choices"][0]["prompt_logprobs"]
    _require_length(places, tokens)
    values, top = [], []
    for entry, token in zip(places[1:], tokens[1:], strict=True):
        values.append(entry[str(token)]["logprob"])
        top.append(int(max((float(told["logprob"]), name) for name, told in entry.items())[1]))
    return _scores(values, top)


def _echo_body(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    return _completion(model, tokens) | {"echo": True, "logprobs": 1}


def _echo_read(reply: Any, tokens: Sequence[int]) -> PromptScores:
    values = reply["choices"][0]["logprobs"]["token_logprobs"][: len(tokens)]
    _require_length(values, tokens)
    if reply["usage"]["prompt_tokens"] != len(tokens) or values[0] is not None:
        raise ValueError
    return _scores(values[1:], None)


def _sglang_body(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    return {
        "input_ids": list(tokens),
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": 1,
    }


def _sglang_read(reply: Any, tokens: Sequence[int]) -> PromptScores:
    facts = reply["meta_info"]
    told = facts["input_token_logprobs"]
    _require_length(told, tokens)
    # a vocabulary's last token is called 0, beside its own value (0.5.23, logprob_result_processor)
    last = max(tokens)
    for (_, name, *_), token in zip(told, tokens, strict=True):
        if name != token and (name, token) != (0, last):
            raise ValueError
    top = [place[0][1] for place in facts["input_top_logprobs"][1:]]
    return _scores([entry[0] for entry in told[1:]], top)


SCORERS = (
    Scorer("prompt_logprobs", False, "/completions", _vllm_body, _vllm_read),
    Scorer("return_logprob", True, "/generate", _sglang_body, _sglang_read),
    Scorer("echo", False, "/completions", _echo_body, _echo_read),
)
"""In the order in which a server is asked for them; the last tells no likeliest token by its id."""


def _completion(model: str, tokens: Sequence[int]) -> dict[str, Any]:
    return {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0}


def _require_length(places: Sequence[Any], tokens: Sequence[int]) -> None:
    if len(places) != len(tokens):
        raise ValueError


def _scores(values: Sequence[Any], top: Sequence[Any] | None) -> PromptScores:
    for value in values:
        if not isinstance(value, int | float) or not isfinite(value):
            raise ValueError
        if not IMPOSSIBLE < value <= 1e-3:
            raise ValueError
    return PromptScores(
        np.asarray(values, np.float64), None if top is None else np.asarray(top, np.int32)
    )
