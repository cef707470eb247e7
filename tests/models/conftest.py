"""A local Hub with a small model, and a cache of its own."""

from __future__ import annotations

import time

import pytest
from hub_server import HubServer, Repo, as_nobody, folder_files
from huggingface_hub import constants

from qwen3q.models.config import read_config
from qwen3q.models.hub import HubSite
from qwen3q.synthetic.checkpoint import reshape_config, write_checkpoint
from tests.models.tiny_hub import CHUNK, REPO


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, demo_folder):
    """The demo's shape cut to two layers, in two shards of about 1 MB."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    config = reshape_config(read_config(demo_folder), num_hidden_layers=2, hidden_size=64)
    write_checkpoint(config, folder, shards=2)
    return folder


@pytest.fixture
def server(tiny_folder, monkeypatch):
    as_nobody(monkeypatch)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with HubServer() as local:
        unwanted = {
            "README.md": b"read me",
            "pytorch_model.bin": b"pickle" * 100,
            "model-Q4_K_M.gguf": b"gguf" * 100,
            "original/consolidated.safetensors": b"x" * 100,
        }
        local.repos[REPO] = Repo(folder_files(tiny_folder) | unwanted)
        yield local


@pytest.fixture
def site(server, tmp_path):
    return HubSite(server.endpoint, tmp_path / "cache")
