"""MODEL:TYPE as a cached file: made once, made anew when the model changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwen3q.errors import SourceError, UsageError
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
    with pytest.raises(SourceError, match="There is no GGUF file at not"):
        local_gguf("not/there.gguf")


def test_a_model_without_type_is_refused(model):
    for name in ("qwen3-8b", str(model)):
        with pytest.raises(UsageError, match="names no GGUF file") as caught:
            local_gguf(name)
        assert f"such as {name}:Q4_K_M" in caught.value.hint


@pytest.mark.parametrize("name", ["nope", "nope:Q4_K_M", "C:\\models\\qwen", "hub:org/name"])
def test_a_model_that_is_not_there_is_not_offered_a_type(name):
    with pytest.raises(SourceError, match="There is no model") as caught:
        local_gguf(name)
    assert f"{name}:Q4_K_M" not in caught.value.hint


@pytest.mark.parametrize("suffix", ["", ":Q4_K_M"])
def test_what_is_quantized_already_is_not_offered_a_type(model, suffix, cache):
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"is quantized already \(awq\), and llama") as caught:
        local_gguf(f"{model}{suffix}")
    assert "float model that it was made from, as MODEL:Q4_K_M" in caught.value.hint
    assert not cache.exists()


def test_a_type_that_needs_a_matrix_leads_to_the_verb_that_makes_one(cache):
    with pytest.raises(UsageError, match="demo:IQ2_XS needs an importance matrix") as caught:
        local_gguf("demo:IQ2_XS")
    assert "qwen3q quantize demo --to gguf:IQ2_XS --calibration balanced" in caught.value.hint
    assert not cache.exists()


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("QWEN3Q_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/qwen3q/gguf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/qwen3q/gguf"
