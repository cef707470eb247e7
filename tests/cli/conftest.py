"""Running the command line in its own process, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from hub_server import HubServer, Repo, folder_files

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qwen3q", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100", **env},
            check=False,
        )

    return run


@pytest.fixture
def packed_on_hub(demo_folder, tmp_path):
    """Someone's GPTQ model on a Hub, and the environment that leads there."""
    files = folder_files(demo_folder)
    config = json.loads(files["config.json"])
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    with HubServer() as hub:
        hub.repos["someone/Tune-GPTQ"] = Repo(files | {"config.json": json.dumps(config).encode()})
        yield hub, {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
