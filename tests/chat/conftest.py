"""Conversations with the demo, greedy and on one thread so that they repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qwen3q.chat.session import ChatSession, SamplingChoice
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.generate import Generator
from qwen3q.llama.model import LlamaModel


@pytest.fixture(scope="session")
def demo_context(demo_gguf) -> Iterator[LlamaContext]:
    options = ContextOptions(context=1024, threads=1, outputs=1)
    with LlamaModel(demo_gguf) as model, LlamaContext(model, options) as context:
        yield context


@pytest.fixture
def make_session(demo_context) -> Callable[..., ChatSession]:
    def make(**options: object) -> ChatSession:
        demo_context.clear()
        options.setdefault("choice", SamplingChoice(temperature=0))
        return ChatSession(Generator(demo_context), **options)

    return make
