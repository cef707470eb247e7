"""Ollama's own ways, as the real server answered them; and the real one, where there is one."""

from __future__ import annotations

import json
import os

import pytest
from continuing import continued
from endpoint_server import reply, serve, served_with

from qwen3q.errors import ModelError, UsageError
from qwen3q.evaluate.artefact import endpoint_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.endpoint import EndpointOptions, find_endpoint
from qwen3q.evaluate.endpoint_backend import EndpointBackend, require_context
from qwen3q.evaluate.endpoint_http import EndpointError
from qwen3q.evaluate.gate_run import GateOptions, run_gate
from qwen3q.evaluate.sampling import Prompt
from qwen3q.evaluate.streaming import StreamingOptions, stream_endpoint
from qwen3q.evaluate.streaming_tables import streaming_table

OPTIONS = BackendOptions(threads=1, device="cpu")


@pytest.fixture
def ollama(codec):
    """A server whose model says token after token."""
    return served_with(
        codec,
        "ollama",
        successor=lambda token: 600 + (token + 1) % 7,
        models=("alice/demo:latest",),
        context=512,
    )


def test_what_it_tells_is_found_whoever_the_model_belongs_to(ollama, demo):
    with serve(ollama) as server:
        artefact = endpoint_artefact(server.url, demo)
        named = find_endpoint(server.url, EndpointOptions("alice/demo"))
        with pytest.raises(UsageError, match="no model 'bob/demo'"):
            find_endpoint(server.url, EndpointOptions("bob/demo"))
    assert artefact.format == "endpoint:ollama"
    assert artefact.endpoint.generation.name == "Ollama"
    assert artefact.endpoint.tokenizer_checked
    assert artefact.endpoint.context == 512
    assert named.model == "alice/demo:latest"
    with pytest.raises(EndpointError, match="takes 512 tokens, but 513"):
        require_context(artefact, 513)


def test_another_tokenizer_shows_although_it_counts_the_same(ollama, demo):
    encode = ollama.encode
    with serve(ollama) as server:
        server.encode = lambda text: [token ^ 1 for token in encode(text)]
        with pytest.raises(ModelError, match="another tokenizer"):
            endpoint_artefact(server.url, demo)


def test_a_server_without_models_says_what_to_do(ollama):
    ollama.models = ()
    with serve(ollama) as server, pytest.raises(UsageError, match="serves no model") as caught:
        find_endpoint(server.url)
    assert caught.value.hint == "Load one first."


def test_a_model_that_can_not_be_loaded_is_told_as_the_server_does(ollama, demo):
    def crash(handler):
        if handler.command == "POST" and handler.path in ("/api/generate", "/v1/completions"):
            reply(handler, 500, {"error": "llama-server process has terminated: signal 11"})
            return True
        return False

    ollama.fault = crash
    with serve(ollama) as server, pytest.raises(EndpointError, match="has terminated: signal 11"):
        endpoint_artefact(server.url, demo)


def test_an_answer_given_up_for_repeating_itself_has_no_end(ollama, demo):
    with serve(ollama) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 512)
        server.successor = lambda token: 610
        count = len(server.requests)
        (made,) = backend.generate([Prompt([700, 701])], 200, frozenset({1}))
        assert len(server.requests) == count + 1
        assert len(made) == 200
        assert set(made[31:]) == {made[30]}
        rows = run_gate(demo, [backend._artefact], GateOptions(each=1, max_tokens=64), OPTIONS)
    assert [row["flaws"].get("endless") for row in rows[2:]] == [3, 3]


def test_a_prompt_that_was_cut_is_no_answer(ollama, demo):
    with serve(ollama) as server:
        backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
        with pytest.raises(EndpointError, match=r"refuses .* with 400: request \(100 tokens\)"):
            continued(backend, [700] * 100, 4)
        encode = server.encode
        server.encode = lambda text: encode(text)[-20:]  # as versions that know no "truncate"
        with pytest.raises(EndpointError, match="read 20 of a prompt's 50 tokens"):
            continued(backend, [700] * 50, 4)


def test_streams_are_asked_for_without_a_template(ollama, codec):
    def stream(write):
        for text in ("one", "", " two", " three"):
            write(json.dumps({"response": text, "done": False}).encode() + b"\n")
        end = {"response": "", "done": True, "done_reason": "stop"}
        write(json.dumps(end | {"prompt_eval_count": 16, "eval_count": 5}).encode() + b"\n")

    ollama.stream = stream
    options = StreamingOptions(concurrency=(2,), prompt=16, generate=8, requests=4)
    with serve(ollama) as server:
        (row,) = stream_endpoint(find_endpoint(server.url), codec, options)
        asked = [body for path, body in server.requests if body.get("stream")]
        with pytest.raises(UsageError, match="takes 512 tokens, but 513 are needed"):
            stream_endpoint(
                find_endpoint(server.url), codec, StreamingOptions(prompt=500, generate=13)
            )
    assert {path for path, body in ollama.requests if body.get("stream")} == {"/api/generate"}
    assert all(body["raw"] and body["options"]["num_ctx"] == 24 for body in asked)
    assert (row["failed"], row["prompt_tokens_read"], row["generated_tokens"]) == (0, 16, 20)
    assert row["pieces"] == 12
    assert "16 + 5 of 8" in streaming_table({"streaming": [row]}).rows[0]


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"response": "one", "done": false}\n'],
        [b'{"error": "no memory"}\n'],
        [b"[1, 2]\n"],
        [b'{"done": true}\n'],
    ],
)
def test_streams_that_break_are_failures(ollama, codec, lines):
    def stream(write):
        for line in lines:
            write(line)

    ollama.stream = stream
    options = StreamingOptions(concurrency=(1,), prompt=16, generate=8, requests=1)
    with serve(ollama) as server, pytest.raises(EndpointError, match="streams no completions"):
        stream_endpoint(find_endpoint(server.url), codec, options)


@pytest.mark.peer
def test_the_real_one_answers_as_torch_does(demo, codec):
    """With QWEN3Q_OLLAMA_URL naming an Ollama that serves the demo's F32 GGUF as demo-f32."""
    url = os.environ.get("QWEN3Q_OLLAMA_URL")
    if not url:
        pytest.skip("QWEN3Q_OLLAMA_URL names no Ollama with the demo as demo-f32")
    artefact = endpoint_artefact(url, demo, EndpointOptions("demo-f32"))
    assert artefact.endpoint.tokenizer_checked
    assert artefact.endpoint.context == 2048
    text = "<|im_start|>user\nWhat is 12 + 34?<|im_end|>\n<|im_start|>assistant\n"
    prompts = [Prompt(codec.encode(text, parse_special=True).tolist())]
    with open_backend(demo, OPTIONS, 512) as backend:
        expected = backend.generate(prompts, 200, codec.stop_tokens)
    with open_backend(artefact, OPTIONS, 512) as backend:
        assert backend.generate(prompts, 200, codec.stop_tokens) == expected
        (looped,) = backend.generate([Prompt([14] * 40)], 200, frozenset())
        assert len(looped) == 200
    options = StreamingOptions(concurrency=(2,), prompt=64, generate=8)
    (row,) = stream_endpoint(artefact.endpoint, codec, options)
    assert (row["failed"], row["prompt_tokens_read"]) == (0, 64)
