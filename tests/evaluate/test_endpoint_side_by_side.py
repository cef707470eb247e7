"""Answers that are asked for side by side: told as they come, and broken off together."""

from __future__ import annotations

import threading

import pytest
from endpoint_server import serve, served_with

from qwen3q.evaluate.artefact import endpoint_artefact
from qwen3q.evaluate.endpoint_backend import EndpointBackend
from qwen3q.evaluate.sampling import Prompt

PROMPTS = [Prompt([700 + number]) for number in range(12)]


@pytest.fixture
def server(codec):
    with serve(served_with(codec, successor=lambda token: 600 + (token + 1) % 97)) as served:
        yield served


def test_an_answer_is_told_as_soon_as_it_is_there(server, demo):
    """The first one comes after all others have been told."""
    told: list[int] = []
    others = threading.Semaphore(0)

    def hold_the_first(handler):
        if handler.asked["prompt"] == [700]:
            assert all(others.acquire(timeout=20) for _ in PROMPTS[1:])
        return False

    def finished(number, _tokens):
        told.append(number)
        others.release()

    backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
    server.fault = hold_the_first
    made = backend.generate(PROMPTS, 5, frozenset(), finished)
    assert told[-1] == 0
    assert made == [server.continuation(prompt.tokens, 5) for prompt in PROMPTS]


def test_ctrl_c_waits_for_no_answer(server, demo):
    let_go = threading.Event()

    def hold_the_others(handler):
        return handler.asked["prompt"] != [700] and not let_go.wait(20)

    def interrupt(_number, _tokens):
        raise KeyboardInterrupt

    backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
    server.fault = hold_the_others
    with pytest.raises(KeyboardInterrupt):
        backend.generate(PROMPTS, 5, frozenset(), interrupt)
    assert not let_go.is_set()
    let_go.set()
    server.fault = None
    assert len(backend.generate(PROMPTS[:2], 5, frozenset())) == 2


def test_a_prompt_is_asked_for_no_more_than_its_own_limit(server, demo):
    backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
    count = len(server.requests)
    limited = Prompt([700], ended=lambda made: False, max_tokens=7)
    assert list(map(len, backend.generate([limited, Prompt([701])], 30, frozenset()))) == [7, 30]
    assert sorted(body["max_tokens"] for _, body in server.requests[count:]) == [7, 30]


def test_answers_that_go_on_are_told_of_when_others_end(server, demo):
    """How far the held one is is not known, but that it is at work, and less than its limit is."""
    others = threading.Semaphore(0)
    grown: list[tuple[int, int]] = []

    def hold_the_first(handler):
        if handler.asked["prompt"] == [700]:
            assert all(others.acquire(timeout=20) for _ in PROMPTS[1:])
        return False

    def tell(number, length):
        grown.append((number, length))

    backend = EndpointBackend(endpoint_artefact(server.url, demo), 64)
    server.fault = hold_the_first
    backend.generate(PROMPTS, 5, frozenset(), lambda *_: others.release(), tell)
    assert sum(number == 0 for number, _ in grown) >= 8
    assert all(0 <= length < 5 for _, length in grown)
