"""The demo loaded once for all tests of this folder. One thread: a busy machine stays fast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.model import LlamaModel


@pytest.fixture(scope="session")
def demo_model(demo_gguf) -> Iterator[LlamaModel]:
    with LlamaModel(demo_gguf) as model:
        yield model


@pytest.fixture
def demo_context(demo_model) -> Iterator[LlamaContext]:
    with LlamaContext(demo_model, ContextOptions(context=1024, threads=1)) as context:
        yield context
