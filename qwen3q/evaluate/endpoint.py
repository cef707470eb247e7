"""A model behind an OpenAI-compatible URL: which one, and what its server can do.

vLLM, SGLang, llama-server, Ollama and others differ in what they answer beside OpenAI's own
fields. So nothing is taken from a name: the server is asked on a few tokens, and what its answer
holds is what it can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3q.errors import ModelError, UsageError
from qwen3q.evaluate.endpoint_generate import GENERATIONS, Generation, Request
from qwen3q.evaluate.endpoint_http import (
    ATTEMPTS,
    MALFORMED,
    Address,
    Client,
    EndpointError,
    RefusedError,
    api_key,
    parse_address,
    plain,
)
from qwen3q.evaluate.endpoint_ollama import OLLAMA, encoded, is_ollama, trained_context
from qwen3q.evaluate.endpoint_scores import SCORERS, Scorer
from qwen3q.evaluate.sampling import GREEDY

PROBE_TEXT = "<|im_start|>user\nWhat is 12 + 34? 你好<|im_end|>\n<think>\n\n</think>\n"
_LLAMACPP = "llamacpp"
_SGLANG = "sglang"
_TELLING = (_LLAMACPP, _SGLANG, "vllm")
"""Servers whose lists of models say who they are; Ollama's say whose the model is."""
_SGLANG_KEEPS = 7
"""Tokens of its ``max_model_len`` that SGLang takes no prompt into (0.5.23: 2,041 of 2,048)."""
_LISTED = 5
_PROBED = 2
"""Tokens that a probe asks for."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served model.

    Attributes:
        model: the name that requests carry.
        server: who serves it, as the server says.
        served: names under which the model may be known here: its folder, file or Hub id.
        context: tokens of prompt and answer together; None if it does not tell.
        seconds: how long an answer may take.
        scorer: how it gives log-probabilities of a prompt; None if it gives none.
        generation: how it continues our tokens; None if it can't.
        tokenizer_checked: it encodes a text as our tokenizer does; False if it has no way to ask.
    """

    address: Address
    model: str
    server: str
    served: tuple[str, ...]
    context: int | None
    seconds: float
    scorer: Scorer | None = None
    generation: Generation | None = None
    tokenizer_checked: bool = False

    @property
    def name(self) -> str:
        """How reports call it: the model's last word and the place."""
        words = [word for word in plain(self.model).split("/") if word]
        return f"{words[-1] if words else 'model'} at {self.address.place}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """What ran it, for reports."""
        return {
            "engine": "endpoint",
            "server": self.server,
            "url": self.address.url,
            "model": plain(self.model),
            "log_probabilities": self.scorer.name if self.scorer else None,
            "generation": self.generation.name if self.generation else None,
            "tokenizer_checked": self.tokenizer_checked,
        }

    def client(self, attempts: int = ATTEMPTS) -> Client:
        key = api_key(self.address)
        return Client(self.address, seconds=self.seconds, key=key, attempts=attempts)


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How an endpoint is asked.

    Attributes:
        model: which of the server's models; None where it has one.
        seconds: how long an answer may take.
    """

    model: str | None = None
    seconds: float = 600.0


def find_endpoint(url: str, options: EndpointOptions | None = None) -> Endpoint:
    """The model served at ``url``, before anything is known of what its server can do.

    Raises:
        UsageError: no URL, several models and none named, or the named one is not there.
        EndpointError: the server can't be reached or lists no models.
    """
    options = options or EndpointOptions()
    address = parse_address(url)
    client = Client(address, seconds=options.seconds, key=api_key(address))
    listed = client.get(f"{address.base}/models")
    try:
        models = {str(entry["id"]): dict(entry) for entry in listed["data"] or ()}
    except MALFORMED:
        raise EndpointError(
            f"{address.url} lists no models, so it is no OpenAI-compatible server.",
            "Most are at http://host:port/v1.",
        ) from None
    name = _choose(address, list(models), options.model)
    entry = models[name]
    owner = plain(str(entry.get("owned_by") or "unknown"))
    root = entry.get("root")
    served = (root, name) if isinstance(root, str) else (name,)
    context = _context(entry, owner)
    if owner not in _TELLING and is_ollama(client):
        owner, context = OLLAMA, trained_context(client, name)
    server = "llama.cpp" if owner == _LLAMACPP else owner
    return Endpoint(address, name, server, served, context, options.seconds)


def probe(
    endpoint: Endpoint, text: str, tokens: Sequence[int]
) -> tuple[Scorer | None, Generation | None]:
    """How the server scores and continues ``tokens``, found out by asking.

    Args:
        text: what ``tokens`` spell.

    Raises:
        EndpointError: it can't be reached, wants a key, or fails at all that it is asked.
    """
    client = endpoint.client(attempts=2)
    failures: list[RefusedError] = []

    def ask(way: Scorer | Generation, body: Mapping[str, Any]) -> Any:
        base = endpoint.address.root if way.native else endpoint.address.base
        try:
            return client.post(base + way.path, body)
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            if error.status >= 500:
                failures.append(error)
            return None

    def scores(scorer: Scorer) -> bool:
        try:
            scorer.read(ask(scorer, scorer.body(endpoint.model, tokens)), tokens)
        except MALFORMED:
            return False
        return True

    def continues(generation: Generation) -> bool:
        context = len(tokens) + _PROBED
        request = Request(endpoint.model, tokens, text, _PROBED, frozenset(), GREEDY, context)
        try:
            answer = generation.read(ask(generation, generation.body(request)))
        except MALFORMED:
            return False
        untold = answer.tokens is None or (not answer.tokens and answer.text)
        if generation.gives_tokens and untold:
            return False
        return answer.prompt_tokens in (None, len(tokens))

    found = next(filter(scores, SCORERS), None), next(filter(continues, GENERATIONS), None)
    if failures and found == (None, None):
        raise failures[0]
    return found


def check_tokenizer(endpoint: Endpoint, text: str, tokens: Sequence[int]) -> bool:
    """Whether the server was asked for the tokens of ``text`` and gave ``tokens``.

    Raises:
        ModelError: it gave others, so it serves a model with another tokenizer.
        EndpointError: it can't be reached.
    """
    told = _encoded(endpoint, text, len(tokens))
    if told is None:
        return False
    if list(told) != list(tokens):
        raise ModelError(
            f"{endpoint.name} has another tokenizer than the one given.",
            "Name the model that it serves: --reference, or --tokenizer of `eval endpoint`.",
        )
    return True


def _encoded(endpoint: Endpoint, text: str, count: int) -> Sequence[int] | None:
    """The server's tokens of ``text``, which has ``count`` here; None if it does not tell."""
    client = endpoint.client()
    if endpoint.server == OLLAMA:
        return encoded(client, endpoint.model, text, count)
    # vLLM and SGLang read the first three, llama-server the others
    body = {
        "model": endpoint.model,
        "prompt": text,
        "add_special_tokens": False,
        "content": text,
        "add_special": False,
        "parse_special": True,
    }
    try:
        return list(client.post(f"{endpoint.address.root}/tokenize", body)["tokens"])
    except (RefusedError, *MALFORMED):
        return None


def _choose(address: Address, names: list[str], wanted: str | None) -> str:
    listed = ", ".join(plain(name) for name in names[:_LISTED])
    listed += f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if wanted is not None:
        if wanted not in names and f"{wanted}:latest" in names:
            return f"{wanted}:latest"  # Ollama's names without a tag
        if wanted not in names:
            raise UsageError(
                f"{address.url} serves no model {wanted!r}.", f"It serves {listed or 'none'}."
            )
        return wanted
    if len(names) != 1:
        count = f"{len(names)} models" if names else "no model"
        hint = f"Name one with --endpoint-model: {listed}." if names else "Load one first."
        raise UsageError(f"{address.url} serves {count}.", hint)
    return names[0]


def _context(entry: Mapping[str, Any], owner: str) -> int | None:
    """vLLM's and SGLang's ``max_model_len``, or llama-server's tokens per slot."""
    meta = entry.get("meta")
    told = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    if type(told) is not int or told <= 0:
        return None
    return max(1, told - _SGLANG_KEEPS) if owner == _SGLANG else told
