"""What Ollama tells and takes beside OpenAI's API; seen with 0.24.0 and 0.32.15."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen3q.evaluate.endpoint_http import MALFORMED, Client, RefusedError

OLLAMA = "ollama"
GENERATE = "/api/generate"
_BARE_TEMPLATE = "{{ .Prompt }}"


def is_ollama(client: Client) -> bool:
    """Whether the server tells its version in the way that Ollama does.

    Raises:
        EndpointError: it can't be reached.
    """
    try:
        return isinstance(client.get(f"{client.address.root}/api/version")["version"], str)
    except (RefusedError, *MALFORMED):
        return False


def trained_context(client: Client, model: str) -> int | None:
    """Tokens that ``model`` was trained on: Ollama loads no longer context, whatever is asked for.

    Raises:
        EndpointError: the server can't be reached.
    """
    try:
        facts = client.post(f"{client.address.root}/api/show", {"model": model})["model_info"]
        told = facts[f"{facts['general.architecture']}.context_length"]
    except (RefusedError, *MALFORMED):
        return None
    return told if type(told) is int and told > 0 else None


def encoded(client: Client, model: str, text: str, count: int) -> Sequence[int] | None:
    """The first ``count`` tokens that the server makes of ``text``; None if it does not tell.

    Raises:
        EndpointError: the server can't be reached.
    """
    body = {
        "model": model,
        "prompt": text,
        "template": _BARE_TEMPLATE,
        "think": False,
        "stream": False,
        "options": {"num_predict": 1, "temperature": 0},
    }
    try:
        reply = client.post(f"{client.address.root}{GENERATE}", body)
        if reply["prompt_eval_count"] != count:
            return None
        return list(reply["context"][:count])
    except (RefusedError, *MALFORMED):
        return None


def raw_body(model: str, text: str, context: int, options: dict[str, Any]) -> dict[str, Any]:
    """A request to continue ``text`` as it is.

    With ``raw`` no template of its own comes around the prompt, and without ``think`` the thinking
    stays in the text. A prompt beyond the context is refused instead of cut, and an answer ends
    there instead of forgetting the prompt.
    """
    return {
        "model": model,
        "prompt": text,
        "raw": True,
        "think": False,
        "truncate": False,
        "shift": False,
        "options": {"num_ctx": context, **options},
    }
