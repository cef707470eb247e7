"""MODEL:TYPE as a cached file: made once, made anew when the model changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwen3q.errors import UsageError
from qwen3q.quantize.local_gguf import cache_folder, local_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("QWEN3Q_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path, demo_folder) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path / "model"))


def test_made_once_per_type(model, cache):
    first = local_gguf(f"{model}:q8_0")
    made = first.stat().st_mtime_ns
    assert first.parent.parent == cache
    assert local_gguf(f"{model}:Q8_0") == first
    assert first.stat().st_mtime_ns == made
    assert local_gguf(f"{model}:F16").parent == first.parent


def test_made_anew_when_the_model_changes(model):
    first = local_gguf(f"{model}:Q8_0")
    (model / "generation_config.json").write_text("{}")
    assert local_gguf(f"{model}:Q8_0").parent != first.parent


def test_the_demo_has_a_default_type():
    assert local_gguf("demo").name.endswith("-Q8_0.gguf")


def test_files_are_taken_as_they_are(tmp_path):
    named = tmp_path / "weights.bin"
    named.touch()
    assert local_gguf(str(named)) == named
    assert local_gguf("not/there.gguf") == Path("not/there.gguf")


@pytest.mark.parametrize("name", ["qwen3-8b", "C:\\models\\qwen", "hub:org/name"])
def test_a_model_without_type_is_refused(name):
    with pytest.raises(UsageError, match="names no GGUF file"):
        local_gguf(name)


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("QWEN3Q_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/qwen3q/gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/qwen3q/gguf"
