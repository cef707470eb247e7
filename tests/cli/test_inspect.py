"""``qwen3q inspect`` on folders, files and releases."""

from __future__ import annotations

import json
import re
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwen3q.evaluate.artefact import find_artefact
from qwen3q.inspection import describe_format, inspect_model
from qwen3q.memory.source import find_model
from qwen3q.models.catalog import find_release
from qwen3q.synthetic.checkpoint import reshape_config, write_checkpoint


def test_release(cli):
    run = cli("inspect", "qwen3-32b", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["config"]["num_attention_heads"] == 64
    assert found["tensor_bytes"] == 65_524_246_528


def test_folder_and_its_gguf(cli, tmp_path):
    folder = json.loads(cli("inspect", "demo", "--json").stdout)
    assert len(folder["tensors"]) == 68
    cli("quantize", "demo", "--to", "gguf:Q4_K_M", "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    run = cli("inspect", path, "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["facts"]["format"] == "gguf:Q4_K_M"
    assert found["facts"]["tokenizer"] == "qwen2"
    assert {t["type"] for t in found["tensors"]} == {"Q4_K", "Q6_K", "F32"}


def test_a_file_type_that_nobody_knows_is_called_the_same_everywhere(cli, tmp_path):
    """A recipe of somebody's own has a number that llama.cpp has not."""
    cli("quantize", "demo", "--to", "gguf:Q8_0", "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    key = b"general.file_type" + struct.pack("<I", 4)
    data = path.read_bytes()
    assert data.count(key + struct.pack("<I", 7)) == 1
    path.write_bytes(data.replace(key + struct.pack("<I", 7), key + struct.pack("<I", 4242)))
    inspected = json.loads(cli("inspect", path, "--json").stdout)["facts"]["format"]
    estimated = find_model(str(path)).stored.format
    assert inspected == estimated == find_artefact(str(path)).format == "gguf:unknown"


def test_control_characters_of_a_file_do_not_reach_the_terminal(cli, tmp_path):
    """Names in a file that somebody else wrote could move the cursor or retitle the window."""
    cli("quantize", "demo", "--to", "gguf:Q8_0", "--out", tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Qwen3 demo", b"\x1b]0;ab\x07\xc2\x9bm"))
    for words in (("inspect", path), ("estimate", path), ("inspect", tmp_path / "\x1b[31mx")):
        run = cli(*words)
        assert "\N{REPLACEMENT CHARACTER}" in run.stdout + run.stderr
        assert not re.search(r"[\x07\x1b\x9b]", run.stdout + run.stderr)
    told = cli("inspect", path, "--json").stdout
    assert not re.search(r"[\x07\x1b\x9b]", told)
    assert json.loads(told)["facts"]["model"] == "\x1b]0;ab\x07\x9bm"


def test_a_folder_is_told_as_it_is_stored(demo_folder, tmp_path):
    """Against the safetensors library, of a checkpoint whose tensors are not all of one dtype."""
    folder = tmp_path / "mixed"
    shutil.copytree(demo_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, folder / "model.safetensors")
    found = inspect_model(str(folder))
    assert (found.facts["folder"], found.facts["files"]) == (str(folder), "1")
    assert found.facts["format"] == "safetensors, not quantized"
    with safe_open(folder / "model.safetensors", "pt") as stored:
        slices = {tensor.name: stored.get_slice(tensor.name) for tensor in found.tensors}
        assert slices.keys() == set(stored.keys())
        expected = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    assert {t.name: (t.type, t.shape) for t in found.tensors} == expected
    assert {kind for kind, _ in expected.values()} == {"BF16", "F32"}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_of_a_folder_stands_for_it(cli, tmp_path, shards):
    folder = tmp_path / "demo"
    config = reshape_config(
        find_release("qwen3-0.6b").config, num_hidden_layers=3, hidden_size=64, vocab_size=8192
    )
    write_checkpoint(config, folder, shards=shards)
    whole = json.loads(cli("inspect", folder, "--json").stdout)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    for file in files:
        assert json.loads(cli("inspect", file, "--json").stdout) == whole
    stray = folder / "adapter.safetensors"
    save_file({"x": torch.zeros(1)}, stray)
    run = cli("inspect", stray)
    assert run.returncode == 1
    assert run.stderr.splitlines()[0].endswith("is no part of the model in its folder.")
    assert str(folder) in run.stderr.splitlines()[1]
    (folder / "config.json").unlink()
    run = cli("inspect", files[0])
    assert run.returncode == 1
    assert "beside a config.json" in run.stderr


def test_what_is_no_model(cli, tmp_path):
    broken = tmp_path / "x.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00")
    for path in (broken, tmp_path, tmp_path / "missing"):
        run = cli("inspect", path)
        assert run.returncode == 1
        assert "Traceback" not in run.stderr
        assert str(path) in run.stderr


def test_a_quantized_model_on_the_hub_is_not_inspected_as_a_float_one(cli, packed_on_hub):
    _, env = packed_on_hub
    run = cli("inspect", "someone/Tune-GPTQ", **env)
    assert run.returncode == 0, run.stderr
    assert "gptq" in run.stdout
    assert "BF16" not in run.stdout


def test_a_folder_whose_config_is_of_another_format_is_told(cli, tmp_path):
    assert cli("quantize", "demo", "--to", "fp8", "--out", tmp_path).returncode == 0
    (folder,) = tmp_path.iterdir()
    facts = json.loads(cli("inspect", folder, "--json").stdout)["facts"]
    assert facts["stored"] == "26 float, 42 fp8"
    assert "warning" not in facts
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    run = cli("inspect", folder)
    assert run.returncode == 0, run.stderr
    first = "model.layers.0.self_attn.q_proj.weight"
    assert f"config.json says awq, but {first} is stored as fp8." in run.stdout


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        (
            {
                "quant_method": "awq",
                "bits": 4,
                "group_size": 128,
                "version": "gemm",
                "zero_point": True,
            },
            "awq, 4 bits, group_size 128, gemm, asymmetric",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 4, "group_size": 128, "symmetric": True},
                        "targets": ["Linear"],
                    }
                },
            },
            "compressed-tensors pack-quantized, 4 bits, group_size 128, symmetric",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {
                    "group_0": {
                        "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True},
                        "weights": {"num_bits": 8, "group_size": None, "symmetric": True},
                        "targets": ["Linear"],
                    }
                },
            },
            "compressed-tensors int-quantized, 8 bits, symmetric, activations 8 bits",
        ),
    ],
    ids=["Qwen/Qwen3-8B-AWQ", "llmcompressor's W4A16", "llmcompressor's W8A8"],
)
def test_widths_and_zero_points_are_told_of_what_others_wrote(quantization, said):
    assert describe_format(quantization) == said


def test_exceptions_by_tensor_are_told():
    groups = {
        "group_0": {"weights": {"num_bits": 8, "group_size": 128, "symmetric": True}},
        "group_1": {"weights": {"num_bits": 4, "group_size": 128, "symmetric": True}},
    }
    packed = {"quant_method": "compressed-tensors", "format": "mixed", "config_groups": groups}
    assert (
        describe_format(packed)
        == "compressed-tensors mixed, 4 and 8 bits, group_size 128, symmetric"
    )
    gptq = {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down": {"bits": 8}}}
    assert describe_format(gptq) == "gptq, 4 bits, with exceptions by tensor"
    routers_alone = {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*mlp.gate$": {}}}
    assert describe_format(routers_alone) == "gptq, 4 bits"
