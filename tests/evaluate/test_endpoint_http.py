"""Asking an endpoint: addresses, keys, and what a server does wrong."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from endpoint_server import reply, serve, served_with

from qwen3q.errors import UsageError
from qwen3q.evaluate.endpoint import find_endpoint
from qwen3q.evaluate.endpoint_http import (
    ATTEMPTS,
    KEY_VARIABLES,
    Address,
    Client,
    EndpointError,
    RefusedError,
    api_key,
    parse_address,
    plain,
)


def client(url: str, **changes) -> tuple[Client, list[float]]:
    pauses: list[float] = []
    return Client(parse_address(url), sleep=pauses.append, **changes), pauses


@pytest.mark.parametrize(
    ("fault", "says", "tries"),
    [
        (lambda h: reply(h, 401, {"error": {"message": "no key"}}), "401: no key", 1),
        (lambda h: reply(h, 404, {"error": "model 'x' not found"}), "404: model 'x'", 1),
        (lambda h: reply(h, 422, {"detail": [{"loc": 1}]}), "422", 1),
        (lambda h: reply(h, 307, b"", Location="http://10.0.0.1/v1"), "http://10.0.0.1/v1", 1),
        (lambda h: reply(h, 200, b"<html>"), "no JSON", 1),
        (lambda h: reply(h, 200, b"[" * 100_000), "no JSON", 1),
        (lambda h: reply(h, 500, b"\x1b[31mred\n" * 99), "500", ATTEMPTS),
        (lambda h: reply(h, 503, {"error": {"message": "Loading model"}}), "Loading", ATTEMPTS),
        (lambda h: reply(h, 429, {}, Retry_After="7"), "429", ATTEMPTS),
        (lambda h: h.connection.close(), "broke off", ATTEMPTS),
        (lambda h: h.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n"), "HTTP", 1),
    ],
)
def test_failures_are_a_sentence_after_a_bounded_number_of_tries(fault, says, tries, codec):
    def answer(handler) -> bool:
        handler.close_connection = True
        fault(handler)
        return True

    with serve(served_with(codec, fault=answer)) as server:
        asked, pauses = client(server.url)
        with pytest.raises(EndpointError) as caught:
            asked.post("/v1/completions", {})
        assert len(server.requests) == tries
    assert says in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    assert len(pauses) == tries - 1
    assert all(0 < pause <= 30 for pause in pauses)
    if "429" in says:
        assert min(pauses) >= 7


def test_a_server_that_is_busy_once_is_asked_again(codec):
    busy = iter([True])

    def answer(handler) -> bool:
        if next(busy, False):
            reply(handler, 503, {})
            return True
        return False

    with serve(served_with(codec, fault=answer)) as server:
        asked, pauses = client(server.url)
        assert asked.get("/v1/models")["data"][0]["id"] == "served"
    assert len(pauses) == 1


def test_a_server_that_stays_silent_is_left():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        asked, pauses = client(f"http://127.0.0.1:{server.getsockname()[1]}", seconds=0.05)
        with pytest.raises(EndpointError, match=r"within 0\.05 seconds"):
            asked.get("/v1/models")
    assert not pauses


def test_replies_have_a_largest_size(codec, monkeypatch):
    monkeypatch.setattr("qwen3q.evaluate.endpoint_http.MAX_REPLY_BYTES", 1 << 20)
    huge = served_with(codec, fault=lambda h: reply(h, 200, b" " * (2 << 20)) is None)
    with serve(huge) as server, pytest.raises(EndpointError, match="1 MiB"):
        client(server.url)[0].get("/v1/models")


def test_nobody_there():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    asked, pauses = client(f"http://127.0.0.1:{port}")
    with pytest.raises(EndpointError, match="connection refused") as caught:
        asked.get("/v1/models")
    assert "running" in caught.value.hint
    assert not pauses


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:secret@127.0.0.1/v1", "password"),
        ("http://", "no endpoint"),
        ("ftp://127.0.0.1/v1", "no endpoint"),
        ("http://127.0.0.1:99999/v1", "no URL"),
        ("http://127.0.0.1/v1?key=1", "no endpoint"),
    ],
)
def test_urls_that_cannot_be_asked(url, says):
    with pytest.raises(UsageError, match=says) as caught:
        parse_address(url)
    assert "secret" not in caught.value.message


def test_addresses():
    for url in ("http://127.0.0.1:80", "http://127.0.0.1/", "HTTP://127.0.0.1/v1/"):
        assert parse_address(url).url == "http://127.0.0.1:80/v1"
    address = parse_address("https://host/llm/v1")
    assert (address.root, address.base, address.port) == ("/llm", "/llm/v1", 443)
    assert parse_address("http://[::1]:8080/v1").place == "[::1]:8080"


def test_keys_come_from_the_environment_and_stay_with_their_server(codec, monkeypatch):
    both = {"QWEN3Q_API_KEY": "mine", "OPENAI_API_KEY": "theirs"}
    openai = {"OPENAI_API_KEY": "theirs"}
    for url, ours, theirs in (
        ("http://127.0.0.1:1", "mine", "theirs"),
        ("http://[::1]:1", "mine", "theirs"),
        ("https://example.org", "mine", "theirs"),
        ("http://example.org", "mine", None),
        ("http://127.0.0.1.example.org", "mine", None),
    ):
        address = parse_address(url)
        assert api_key(address, both) == ("QWEN3Q_API_KEY", ours)
        assert api_key(address, openai) == (theirs and ("OPENAI_API_KEY", theirs))
        assert api_key(address, {}) is None
    with pytest.raises(UsageError) as caught:
        api_key(address, {"QWEN3Q_API_KEY": "a\r\nX-Evil: 1"})
    assert "Evil" not in caught.value.message
    monkeypatch.setenv("QWEN3Q_API_KEY", "mine")
    with serve(served_with(codec)) as server:
        find_endpoint(server.url)
    assert server.keys == ["Bearer mine"]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "No key was sent: it goes into the environment variable QWEN3Q_API_KEY."),
        ({"QWEN3Q_API_KEY": "old"}, "It was sent the key in QWEN3Q_API_KEY"),
        ({"OPENAI_API_KEY": "old"}, "It was sent the key in OPENAI_API_KEY"),
    ],
)
def test_a_missing_and_a_wrong_key_are_told_apart(environment, says, codec, monkeypatch):
    def guard(handler) -> bool:
        if handler.headers.get("Authorization") == "Bearer right":
            return False
        reply(handler, 401, {"error": {"message": "Invalid key"}})
        return True

    for name in KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with serve(served_with(codec, fault=guard)) as server:
        for name, key in environment.items():
            monkeypatch.setenv(name, key)
        with pytest.raises(RefusedError, match="Invalid key") as refused:
            find_endpoint(server.url)
        assert says in refused.value.hint
        assert "old" not in refused.value.hint
        for name in environment or KEY_VARIABLES[:1]:
            monkeypatch.setenv(name, "right")
        assert find_endpoint(server.url).model == "served"


def test_a_key_that_stays_here_is_told(codec, monkeypatch):
    monkeypatch.delenv("QWEN3Q_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "general")
    monkeypatch.setattr(Address, "is_private", False)

    def guard(handler) -> bool:
        reply(handler, 401, {})
        return True

    with serve(served_with(codec, fault=guard)) as server, pytest.raises(RefusedError) as refused:
        find_endpoint(server.url)
    assert server.keys == [None]
    assert "OPENAI_API_KEY is not sent over plain HTTP" in refused.value.hint


def test_a_servers_words_are_one_short_printable_line():
    assert plain("a\x1b[31m\nb\u202e" + "c" * 999).isprintable()
    assert len(plain("word " * 999)) <= 200
