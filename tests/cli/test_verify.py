"""``qwen3q verify`` as a user calls it: words, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_verify_says_what_it_saw(cli: Callable[..., Any], demo_folder: Path) -> None:
    done = cli("verify", demo_folder)
    assert done.returncode == 0
    assert "layout" in done.stdout
    assert "all finite" in done.stdout


def test_verify_fails_by_exit_code(
    cli: Callable[..., Any], demo_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_folder, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    done = cli("verify", copy, "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["passed"] is False
    assert "truncated" in answer["checks"][0]["detail"]
    assert "Traceback" not in done.stderr


def test_verify_of_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("verify", tmp_path)
    assert done.returncode == 1
    assert "no config.json" in done.stderr
