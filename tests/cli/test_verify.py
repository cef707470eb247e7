"""``qwen3q verify`` as a user calls it: words, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_verify_says_what_it_saw(cli: Callable[..., Any], demo_folder: Path) -> None:
    done = cli("verify", demo_folder)
    assert done.returncode == 0
    assert "layout" in done.stdout
    assert "all finite" in done.stdout
    assert "No manifest.json here" in done.stderr


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


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["{tmp}/m.gguf"], 2, "m.gguf is a GGUF file; verify checks folders.", "qwen3q inspect"),
        (["{tmp}/text"], 2, "text is a file, not a model folder.", "A model is a folder"),
        (["./nope"], 1, "There is no folder ./nope.", "A model is a folder"),
        (["demo", "--source", "nope"], 2, "--source nope: There is no model 'nope'.", "A model"),
        (["demo", "--source", "demo"], 2, "has no manifest.json", "Leave --source out"),
        (["{awq}"], 1, "bits is 'four', not 1 to 32", "config.json again"),
    ],
)
def test_what_can_not_be_verified(
    cli: Callable[..., Any], demo_folder: Path, tmp_path: Path,
    arguments: list[str], code: int, message: str, hint: str,
) -> None:  # fmt: skip
    for name in ("m.gguf", "text"):
        (tmp_path / name).touch()
    copy = tmp_path / "awq"
    shutil.copytree(demo_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": "four"}
    (copy / "config.json").write_text(json.dumps(config))
    done = cli("verify", *(word.format(tmp=tmp_path, awq=copy) for word in arguments))
    assert done.returncode == code
    assert message in done.stderr
    assert hint in done.stderr


def test_the_demo_is_a_source_by_its_name(
    cli: Callable[..., Any], demo_folder: Path, tmp_path: Path
) -> None:
    assert cli("quantize", "demo", "--to", "fp8", "--out", tmp_path).returncode == 0
    (made,) = tmp_path.iterdir()
    done = cli("verify", made, "--source", "demo")
    assert done.returncode == 0, done.stdout
    assert "ok     source" in done.stdout


def test_a_folder_without_tokenizer_fails(
    cli: Callable[..., Any], demo_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_folder, copy)
    (copy / "tokenizer.json").unlink()
    done = cli("verify", copy)
    assert done.returncode == 1
    assert "FAILED tokenizer" in done.stdout
