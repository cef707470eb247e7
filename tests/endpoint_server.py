"""A small OpenAI-compatible server on loopback whose distribution is known, in six dialects.

After a token comes ``successor(token)`` with probability 1/2, and every other with the same share
of the rest. So log-probabilities, perplexities and greedy continuations can be written down.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from math import log
from typing import Any

from hub_server import QuietServer

from qwen3q.evaluate.tokens import TextCodec

Stream = Callable[[Callable[[bytes], None]], None]


@dataclass
class Served:
    """What the server is and saw; tests change it between requests.

    Attributes:
        dialect: vllm, echo, sglang, llamacpp, ollama or text.
        successor: the likeliest token after one.
        encode, decode: the tokenizer.
        fault: called before every answer with the handler; True if it answered itself.
        stream: writes the events of a streamed answer.
        requests: path and body of each POST.
        keys: the Authorization header of each request.
    """

    dialect: str
    successor: Callable[[int], int]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    vocab_size: int = 8192
    models: tuple[str, ...] = ("served",)
    context: int | None = 2048
    fault: Callable[[BaseHTTPRequestHandler], bool] | None = None
    stream: Stream | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def log_probability(self, before: int, token: int) -> float:
        if token == self.successor(before):
            return log(0.5)
        return log(0.5 / (self.vocab_size - 1))

    def continuation(self, tokens: Sequence[int], count: int) -> list[int]:
        made: list[int] = []
        for _ in range(count):
            made.append(self.successor(made[-1] if made else tokens[-1]))
        return made


def served_with(
    codec: TextCodec,
    dialect: str = "vllm",
    *,
    successor: Callable[[int], int] = lambda token: 262,
    **changes: Any,
) -> Served:
    """A server whose tokenizer is ``codec``."""
    return Served(
        dialect,
        successor,
        encode=lambda text: codec.encode(text, parse_special=True).tolist(),
        decode=codec.spell,
        **changes,
    )


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    """Runs the server until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            served.keys.append(self.headers.get("Authorization"))
            if served.fault is not None and served.fault(self):
                return
            if self.path == "/v1/models":
                return reply(self, 200, models(served))
            if self.path == "/api/version" and served.dialect == "ollama":
                return reply(self, 200, {"version": "0.32.15"})
            return reply(self, 404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked = body
            served.requests.append((self.path, body))
            served.keys.append(self.headers.get("Authorization"))
            if served.fault is not None and served.fault(self):
                return None
            if body.get("stream") and self.path in ("/v1/completions", "/api/generate"):
                return stream_reply(self, served.stream)
            answer = ANSWERS.get((served.dialect, self.path)) or ANSWERS.get(("any", self.path))
            if answer is None:
                return reply(self, 404, {"detail": "Not Found"})
            try:
                return reply(self, 200, answer(served, body))
            except Refuse as error:
                return reply(self, 400, {"error": {"message": str(error)}})

    server = QuietServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class Refuse(Exception):
    """Answered with 400."""


def reply(handler: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def stream_reply(handler: BaseHTTPRequestHandler, stream: Stream | None) -> None:
    assert stream is not None
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()

    def write(data: bytes) -> None:
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.wfile.flush()

    try:
        stream(write)
        handler.wfile.write(b"0\r\n\r\n")
    except ConnectionAbortedError:
        handler.close_connection = True


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def usage_event(prompt: int, made: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": made}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def models(served: Served) -> dict[str, Any]:
    if served.dialect == "ollama":
        names = [{"id": name, "owned_by": name.partition("/")[0]} for name in served.models]
        return {"object": "list", "data": names or None}
    rows: list[dict[str, Any]] = [
        {"id": name, "owned_by": served.dialect} for name in served.models
    ]
    for row in rows:
        if served.dialect == "llamacpp":
            row["meta"] = {"n_ctx": served.context}
        else:
            row["max_model_len"] = served.context
    return {"object": "list", "data": rows}


def _cut(served: Served, body: dict[str, Any], made: list[int]) -> list[int]:
    stops = body.get("stop_token_ids", [])
    end = next((i + 1 for i, token in enumerate(made) if token in stops), len(made))
    return made[:end]


def _completion(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """``/v1/completions`` of vLLM, and of a server that knows no more than OpenAI's fields."""
    if body["model"] not in served.models:
        raise Refuse("no such model")
    tokens, count = body["prompt"], body["max_tokens"]
    if served.dialect in ("ollama", "text"):
        if not isinstance(tokens, str):
            raise Refuse("cannot unmarshal array into Go struct field prompt of type string")
        template = "<|im_start|>user\n" if served.dialect == "ollama" else ""
        tokens = served.encode(template + tokens)
    made = _cut(served, body, served.continuation(tokens, count))
    finish = "length" if len(made) == count else "stop"
    choice: dict[str, Any] = {"text": served.decode(made), "finish_reason": finish}
    scores = [served.log_probability(a, b) for a, b in pairwise(tokens)]
    if served.dialect == "vllm":
        if body.get("top_k", -1) < 1 and body.get("top_k", -1) != -1:
            raise Refuse("top_k must be -1 (disable), or at least 1.")
        if body.get("return_token_ids"):
            choice["token_ids"] = made
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None]
            for before, token, score in zip(tokens, tokens[1:], scores, strict=False):
                top = str(served.successor(before))
                place = {str(token): {"logprob": score, "rank": 7}}
                place[top] = {"logprob": log(0.5), "rank": 1}
                choice["prompt_logprobs"].append(place)
    elif served.dialect in ("echo", "sglang") and body.get("echo"):
        values = [None, *scores, *[log(0.5)] * len(made)]
        choice["logprobs"] = {"token_logprobs": values}
    usage = {"prompt_tokens": len(tokens), "completion_tokens": len(made)}
    return {"choices": [choice], "usage": usage}


def _sglang(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    tokens, options = body["input_ids"], body["sampling_params"]
    count = options["max_new_tokens"]
    made = _cut(served, options, served.continuation(tokens, count))
    finish = {"type": "length" if len(made) == count else "stop"}
    facts: dict[str, Any] = {"prompt_tokens": len(tokens), "finish_reason": finish}
    if body.get("return_logprob"):
        facts["input_token_logprobs"] = [[None, tokens[0], None]]
        facts["input_top_logprobs"] = [None]
        for before, token in pairwise(tokens):
            score = served.log_probability(before, token)
            # as SGLang 0.5.23: the last token of the vocabulary is called 0
            name = token if token < served.vocab_size - 1 else 0
            facts["input_token_logprobs"].append([score, name, None])
            facts["input_top_logprobs"].append([[log(0.5), served.successor(before), None]])
    return {"text": served.decode(made), "output_ids": made, "meta_info": facts}


def _llama(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    made = served.continuation(body["prompt"], body["n_predict"])
    return {
        "content": served.decode(made),
        "tokens": made if body.get("return_tokens") else [],
        "tokens_evaluated": len(body["prompt"]),
        "stop_type": "limit",
    }


def _ollama(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """As Ollama 0.32.15 answers: it gives up after 30 equal tokens, and then does not end."""
    tokens = served.encode(body["prompt"])
    count = body["options"]["num_predict"]
    if not body.get("raw"):
        assert body["template"] == "{{ .Prompt }}"
        made = served.continuation(tokens, count)
        end = {"done": True, "done_reason": "length", "context": [*tokens, *made]}
        return {"response": served.decode(made), "prompt_eval_count": len(tokens)} | end
    assert body["think"] is body["truncate"] is body["shift"] is False
    context = min(body["options"]["num_ctx"], served.context or 1 << 20)
    if len(tokens) > context:
        inner = {"error": {"code": 400, "message": f"request ({len(tokens)} tokens) exceeds it"}}
        raise Refuse(json.dumps(inner))
    made = served.continuation(tokens, count)
    if len(made) > 30 and len(set(made[-30:])) == 1:
        return {"model": body["model"], "response": served.decode(made[:31]), "done": False}
    return {
        "response": served.decode(made),
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": len(tokens),
        "eval_count": len(made),
    }


def _show(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    if body["model"] not in served.models:
        raise Refuse("no such model")
    facts = {"general.architecture": "qwen3", "qwen3.context_length": served.context}
    return {"model_info": facts}


def _tokenize(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": served.encode(body["prompt"])}


ANSWERS: dict[tuple[str, str], Callable[[Served, dict[str, Any]], dict[str, Any]]] = {
    ("any", "/v1/completions"): _completion,
    ("sglang", "/generate"): _sglang,
    ("llamacpp", "/completion"): _llama,
    ("ollama", "/api/generate"): _ollama,
    ("ollama", "/api/show"): _show,
    ("vllm", "/tokenize"): _tokenize,
    ("llamacpp", "/tokenize"): _tokenize,
    ("sglang", "/tokenize"): _tokenize,
}
