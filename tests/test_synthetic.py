"""Random checkpoints load elsewhere, repeat from their seed, and stay small in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import DiskError, ModelError, UsageError
from qwen3q.models.catalog import catalog, find_release
from qwen3q.models.config import parse_config, read_config
from qwen3q.models.tensors import check_tensors, parameter_count
from qwen3q.synthetic import checkpoint
from qwen3q.synthetic.checkpoint import config_json, reshape_config, write_checkpoint

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 8200,
}


def small_config(name: str, **sizes: int):
    return reshape_config(find_release(name).config, **(SMALL | sizes))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "dense"
    write_checkpoint(small_config("qwen3-0.6b"), folder, seed=3)
    return folder


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "moe"
    config = small_config("qwen3-30b-a3b", num_experts=4, moe_intermediate_size=96)
    write_checkpoint(config, folder, shards=3)
    return folder


def read_with_safetensors(folder) -> dict[str, object]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_transformers_loads_every_tensor_and_runs(kind, request):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = request.getfixturevalue(kind)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    tokens = AutoTokenizer.from_pretrained(folder)("What is 2 + 2?", return_tensors="pt")
    logits = model(**tokens).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.01
    assert model.num_parameters() == parameter_count(read_config(folder))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_tensors_fit_the_config(kind, request):
    folder = request.getfixturevalue(kind)
    with Checkpoint(folder) as opened:
        shapes = {name: tensor.shape for name, tensor in opened.tensors.items()}
    specs = check_tensors(read_config(folder), shapes, where=kind)
    assert len(specs) == len(shapes)


def test_shards_are_about_equal_and_indexed(moe):
    files = sorted(moe.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    index = json.loads((moe / "model.safetensors.index.json").read_text())
    for name, filename in index["weight_map"].items():
        with safe_open(moe / filename, framework="np") as file:
            assert name in file.keys()  # noqa: SIM118
    tensors = read_with_safetensors(moe)
    assert sorted(index["weight_map"]) == sorted(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in tensors.values())
    largest = max(t.numel() * 2 for t in tensors.values())
    assert max(file.stat().st_size for file in files) <= max(
        largest * 1.1, 2 * sum(file.stat().st_size for file in files) / 3
    )


def test_weights_look_like_a_trained_model(dense):
    config = read_config(dense)
    tensors = read_with_safetensors(dense)
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        assert np.isfinite(values).all(), name
        if name.endswith("norm.weight"):
            assert abs(values.mean() - 1) < 0.1, name
            continue
        assert abs(values.mean()) < 0.01, name
        spread = values.std(axis=0)
        usual = np.median(spread)
        outliers = int((spread > 4 * usual).sum())
        assert outliers == (0 if "embed" in name else 1), name
    gate = tensors["model.layers.0.mlp.gate_proj.weight"].float().numpy()
    assert np.median(gate.std(axis=0)) == pytest.approx(config.hidden_size**-0.5, rel=0.2)
    assert len(np.unique(gate, axis=0)) == len(gate)


def test_a_seed_repeats_and_another_differs(dense, tmp_path):
    config = small_config("qwen3-0.6b")
    write_checkpoint(config, tmp_path / "same", seed=3)
    write_checkpoint(config, tmp_path / "other", seed=4)
    original = (dense / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == original
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != original


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_hold_the_same_values(dense, tmp_path, dtype):
    write_checkpoint(small_config("qwen3-0.6b"), tmp_path / "model", dtype=dtype, seed=3)
    stored = read_with_safetensors(tmp_path / "model")
    for name, tensor in read_with_safetensors(dense).items():
        assert str(stored[name].dtype) == f"torch.{dtype}"
        bits = stored[name].float().numpy()
        np.testing.assert_allclose(tensor.float().numpy(), bits, rtol=2**-7, atol=1e-6)
    assert read_config(tmp_path / "model").dtype == dtype


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    config = small_config("qwen3-8b", hidden_size=1024, vocab_size=30000)
    tracemalloc.start()
    try:
        write_checkpoint(config, tmp_path / "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = 30000 * 1024 * 2
    assert peak < largest / 2


@pytest.mark.parametrize("release", catalog(), ids=lambda release: release.name)
def test_config_survives_the_round_trip(release):
    assert parse_config(config_json(release.config)) == release.config


def test_a_taken_folder_is_left_alone(dense):
    before = sorted(path.name for path in dense.iterdir())
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(small_config("qwen3-0.6b"), dense)
    assert sorted(path.name for path in dense.iterdir()) == before


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("stop")

    monkeypatch.setattr(checkpoint, "encode", broken)
    with pytest.raises(RuntimeError):
        write_checkpoint(small_config("qwen3-0.6b"), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_disk_space_is_checked_first(tmp_path, monkeypatch):
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskError, match="would take"):
        write_checkpoint(small_config("qwen3-0.6b"), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="too small"):
        write_checkpoint(small_config("qwen3-0.6b", vocab_size=8000), tmp_path / "model")
    with pytest.raises(UsageError, match="dense"):
        small_config("qwen3-0.6b", num_experts=4)
    with pytest.raises(ModelError, match="num_key_value_heads"):
        small_config("qwen3-0.6b", num_key_value_heads=3)
    with pytest.raises(UsageError, match="int8"):
        write_checkpoint(small_config("qwen3-0.6b"), tmp_path / "model", dtype="int8")
    with pytest.raises(UsageError, match="shards"):
        write_checkpoint(small_config("qwen3-0.6b"), tmp_path / "model", shards=1000)


def test_fewer_experts_than_active_ones_lowers_the_active_ones():
    config = reshape_config(find_release("qwen3-30b-a3b").config, num_experts=4)
    assert replace(config, num_experts=128, num_experts_per_tok=8) == (
        find_release("qwen3-30b-a3b").config
    )
    assert config.num_experts_per_tok == 4


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "qwen3q.synthetic"]
    sizes = ["--layers=1", "--hidden=64", "--intermediate=64", "--vocab=8192", "--shards=2"]
    made = subprocess.run(
        [*command, "qwen3-0.6b", str(tmp_path / "model"), *sizes], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert "2 files" in made.stdout
    assert read_config(tmp_path / "model").num_hidden_layers == 1
    again = subprocess.run(
        [*command, "qwen3-0.6b", str(tmp_path / "model")], capture_output=True, text=True
    )
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr
