"""The demo model, its tokenizer, and its GGUF files, written once."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qwen3q.evaluate.artefact import Artefact, find_artefact
from qwen3q.evaluate.tokens import TextCodec, open_codec
from qwen3q.models.source import resolve
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.quantize.run import QuantizeOptions, quantize_gguf

TYPES = ("F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K")


@pytest.fixture(scope="session")
def demo() -> Artefact:
    return find_artefact("demo")


@pytest.fixture(scope="session")
def codec(demo) -> TextCodec:
    return open_codec(demo)


@pytest.fixture(scope="session")
def demo_ggufs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ggufs")
    made = quantize_gguf(
        resolve("demo"), [FILE_TYPES[name] for name in TYPES], folder, QuantizeOptions(threads=2)
    )
    return {name: artefact.path for name, artefact in zip(TYPES, made, strict=True)}


@pytest.fixture(scope="session")
def llama_server(llama_tools, demo_ggufs) -> Iterator[str]:
    """llama-server with the demo, four answers at a time."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [llama_tools / "llama-server", "-m", demo_ggufs["F32"], "--no-repack", "-t", "2"]
    command += ["-np", "4", "-c", "4096", "--host", "127.0.0.1", "--port", str(port)]
    log = subprocess.DEVNULL
    process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    from qwen3q.errors import Qwen3qError
    from qwen3q.evaluate.endpoint import find_endpoint

    try:
        for _ in range(240):
            try:
                find_endpoint(url)
                break
            except Qwen3qError:
                time.sleep(0.25)
        yield url
    finally:
        process.kill()
        process.wait()
