"""``qwen3q quantize`` as a user meets it: plans, files, and one sentence for what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest

from qwen3q.checkpoint.reader import INDEX_NAME


def test_dry_run_of_a_release_needs_no_weights(cli):
    run = cli("quantize", "qwen3-30b-a3b", "--to", "gguf:Q4_K_M", "--dry-run", "--json")
    assert run.returncode == 0, run.stderr
    (plan,) = json.loads(run.stdout)["plans"]
    assert plan["format"] == "gguf:Q4_K_M"
    assert plan["tensor_bytes"] == sum(t["bytes"] for t in plan["tensors"])
    experts = next(t for t in plan["tensors"] if t["name"] == "blk.0.ffn_up_exps.weight")
    assert experts["shape"] == [128, 768, 2048]


def test_plan_and_file_agree(cli, tmp_path):
    plan = cli("quantize", "demo", "--to", "gguf:Q4_K_M", "--dry-run", "--json")
    done = cli("quantize", "demo", "--to", "gguf:Q4_K_M", "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (artefact,) = json.loads(done.stdout)["artefacts"]
    (planned,) = json.loads(plan.stdout)["plans"]
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == artefact["file_bytes"] == planned["file_bytes"]
    assert planned["file_bytes_exact"]
    again = cli("quantize", "demo", "--to", "gguf:Q4_K_M", "--out", tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert "--force" in again.stderr


def broken(demo_folder, tmp_path, damage: str):
    """The demo with one thing wrong."""
    folder = tmp_path / "model"
    shutil.copytree(demo_folder, folder)
    weights = folder / "model.safetensors"
    match damage:
        case "no config":
            (folder / "config.json").unlink()
        case "truncated shard":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "index with ..":
            (folder / INDEX_NAME).write_text('{"weight_map": {"a": "../x.safetensors"}}')
        case "not qwen3":
            (folder / "config.json").write_text('{"model_type": "llama"}')
        case "another shape":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 1024}))
        case "fewer layers":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("no config", "no config.json"),
        ("truncated shard", "truncated"),
        ("index with ..", "../x.safetensors"),
        ("not qwen3", "model_type 'llama'"),
        ("another shape", "model.layers.0.mlp.gate_proj.weight has shape [768, 256]"),
        ("fewer layers", "model.layers.5."),
        ("no tokenizer", "tokenizer.json is missing"),
    ],
)
def test_broken_model_gets_a_sentence_and_leaves_nothing(cli, demo_folder, tmp_path, damage, says):
    folder = broken(demo_folder, tmp_path, damage)
    out = tmp_path / "out"
    run = cli("quantize", folder, "--to", "gguf:Q8_0", "--out", out)
    assert run.returncode == 1
    assert says in run.stderr
    assert "Traceback" not in run.stderr
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["./nowhere", "--to", "gguf:Q8_0"], 1, "nowhere"),
        (["qwen3-9b", "--to", "gguf:Q8_0", "--dry-run"], 1, "Did you mean qwen3-8b"),
        (["demo", "--to", "gguf:Q4_K_X"], 2, "'Q4_K_X' is no GGUF file type"),
        (["demo", "--to", "gguf"], 2, "gguf needs a type"),
        (["demo", "--to", "q4"], 2, "'q4' is no format"),
        (["demo"], 2, "--to"),
        (["demo", "--to", "gguf:IQ2_XS"], 2, "importance matrix"),
        (["demo", "--to", "gguf:Q8_0", "--yarn", "9"], 2, "--yarn 9"),
        (["demo", "--to", "gguf:Q8_0", "--imatrix", "no.gguf"], 1, "no.gguf"),
        (["demo", "--to", "gguf:Q8_0", "--out", "/proc/nowhere"], 1, "/proc/nowhere"),
    ],
)
def test_bad_arguments(cli, arguments, code, says):
    run = cli("quantize", *arguments)
    assert run.returncode == code
    assert says in run.stderr
    assert "Traceback" not in run.stderr
