"""The demo model as GGUF files, written once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen3q.models.source import resolve
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.quantize.run import GgufOptions, quantize_gguf

TYPES = ("F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K")


@pytest.fixture(scope="session")
def demo_ggufs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    made = quantize_gguf(
        resolve("demo"), [FILE_TYPES[name] for name in TYPES], folder, GgufOptions(threads=2)
    )
    return {name: artefact.path for name, artefact in zip(TYPES, made, strict=True)}


@pytest.fixture(scope="session")
def llama_tools() -> Path:
    """Folder of llama.cpp's own programs."""
    folder = os.environ.get("QWEN3Q_LLAMA_CPP_BIN")
    if not folder:
        pytest.skip("QWEN3Q_LLAMA_CPP_BIN names no folder with llama.cpp's tools")
    return Path(folder)
