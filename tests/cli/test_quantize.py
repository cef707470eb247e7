"""``qwen3q quantize`` as a user meets it: plans, files, and one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3q.checkpoint.reader import INDEX_NAME
from qwen3q.plan.recipes import recipe_names


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


def restored(demo_folder, folder, dtype: str, chosen: str):
    """The demo with the tensors whose name holds ``chosen`` stored in another dtype."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    shutil.copytree(demo_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if chosen in name:
            tensors[name] = tensors[name].to(getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_plan_knows_what_a_folder_really_holds(cli, demo_folder, tmp_path):
    """Norms in float32 under a config that says bfloat16, as some fine-tunes are saved."""
    model = restored(demo_folder, tmp_path / "tune", "float32", "norm")
    plan = cli("quantize", model, "--to", "fp8", "--dry-run", "--json")
    done = cli("quantize", model, "--to", "fp8", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    (planned,) = json.loads(plan.stdout)["plans"]
    (artefact,) = json.loads(done.stdout)["artefacts"]
    stored = (Path(artefact["path"]) / "model.safetensors").read_bytes()
    header = int.from_bytes(stored[:8], "little")
    assert len(stored) == 8 + header + planned["tensor_bytes"]
    assert not planned["file_bytes_exact"]
    assert abs(planned["file_bytes"] - artefact["file_bytes"]) < 20_000


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_weights_without_their_scales_are_refused(cli, demo_folder, tmp_path, dry):
    model = restored(demo_folder, tmp_path / "cast", "float8_e4m3fn", "o_proj")
    run = cli("quantize", model, "--to", "bnb:nf4", "--out", tmp_path / "out", *dry)
    assert run.returncode == 2
    assert "model.layers.0.self_attn.o_proj.weight is stored as F8_E4M3" in run.stderr
    assert "Traceback" not in run.stderr


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
@pytest.mark.parametrize("to", ["gguf:Q8_0", "fp8"])
def test_broken_model_gets_a_sentence_and_leaves_nothing(
    cli, demo_folder, tmp_path, damage, says, to
):
    folder = broken(demo_folder, tmp_path, damage)
    out = tmp_path / "out"
    run = cli("quantize", folder, "--to", to, "--out", out)
    assert run.returncode == 1
    assert says in run.stderr
    assert len(run.stderr[run.stderr.index("qwen3q: ") :].splitlines()) == 2, "no next step"
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
        (
            ["demo", "--to", "int4", "--calibration-length", "2049"],
            2,
            "context of Qwen3 demo, 2048",
        ),
        (["demo", "--to", "gguf:Q8_0", "--imatrix", "no.gguf"], 2, "no.gguf"),
        (
            ["demo", "--to", "bnb:nf4", "--calibration", "balanced"],
            2,
            "--calibration changes nothing about bnb:nf4",
        ),
        (["demo", "--to", "gguf:Q8_0", "--out", "/proc/nowhere"], 1, "/proc/nowhere"),
    ],
)
def test_bad_arguments(cli, arguments, code, says):
    run = cli("quantize", *arguments)
    assert run.returncode == code
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_help_names_every_recipe(cli):
    told = cli("quantize", "--help").stdout
    assert [name for name in recipe_names() if name not in told] == []


def test_the_size_that_is_told_of_a_folder_is_that_on_the_disk(cli, tmp_path):
    done = cli("quantize", "demo", "--to", "fp8", "--out", tmp_path, "--json")
    [told] = json.loads(done.stdout)["artefacts"]
    assert told["file_bytes"] == sum(p.stat().st_size for p in Path(told["path"]).iterdir())


def test_engines_and_legality_are_told_before_the_work(cli):
    """Qwen3-30B-A3B: down_proj has 768 inputs per expert, 6 groups of 128, so not over 4 GPUs."""
    arguments = ("quantize", "qwen3-30b-a3b", "--to", "gptq:int4", "--to", "int8", "--dry-run")
    told = cli(*arguments)
    assert told.returncode == 0, told.stderr
    lines = told.stderr.splitlines()
    assert lines[0] == "gptq:int4: loaded by vLLM, gptqmodel."
    assert "o_proj 4096 / 128 = 32, down_proj 768 / 128 = 6" in lines[1]
    assert "over 1, 2 GPUs" in lines[2]
    assert "Not over 4" in lines[3]
    assert "--group-size 64 would be legal" in lines[3]
    assert "--group-size 32 would be legal" in lines[4]
    assert "random values" in lines[5]
    assert lines[6] == "int8: loaded by vLLM."
    quiet = cli(*arguments, "--json")
    assert quiet.stderr == ""
    gptq, int8 = json.loads(quiet.stdout)["engines"]
    assert gptq["transformers"] is None
    assert int8["transformers"] is None
    splits = {split["size"]: split for split in gptq["tensor_parallel"]}
    assert [size for size, split in splits.items() if split["legal"]] == [1, 2]
    assert (splits[4]["legal_group_size"], splits[8]["legal_group_size"]) == (64, 32)
    assert all(split["legal"] for split in int8["tensor_parallel"])
    at_64 = cli(*arguments[:4], "--group-size", "64", "--dry-run")
    assert "over 1, 2, 4 GPUs" in at_64.stderr


def test_one_gpu_is_one_and_the_numbers_are_those_of_a_gpu(cli):
    told = cli("quantize", "demo", "--to", "fp8", "--dry-run").stderr
    assert "Tensor parallel over 1 GPU is legal." in told
    [four] = [line for line in told.splitlines() if "Not over 4" in line]
    assert "64 of 128 outputs per GPU do not divide by 128" in four


def test_asymmetric_gptq_is_said_not_to_be_for_vllm(cli):
    told = cli("quantize", "qwen3-8b", "--to", "gptq:int4", "--asym", "--dry-run")
    assert "vLLM and GPTQModel refuse asymmetric GPTQ" in told.stderr
    assert "loaded by transformers" in told.stderr


def test_what_no_engine_runs_is_said_before_the_work(cli):
    told = cli("quantize", "qwen3-30b-a3b", "--to", "gptq:int4", "--asym", "--dry-run").stderr
    assert "gptq:int4: loaded by no engine that is known." in told
    assert "no engine that is known runs what will be written: leave --asym out." in told
    assert "load it with" not in told


def test_one_scale_per_output_is_said_not_to_run_on_a_cpu(cli):
    """transformers 5.23 with gptqmodel 7.6: "expect qGroupSize to be 32, 64, 128 or 256"."""
    call = ("quantize", "qwen3-8b", "--to", "gptq:int4", "--to", "awq:int4", "--dry-run")
    assert cli(*call, "--group-size", "-1").stderr.count("fails when it generates") == 2
    assert "fails when it generates" not in cli(*call).stderr
    wider = cli("quantize", "qwen3-8b", "--to", "gptq:int8", "--group-size", "-1", "--dry-run")
    assert "fails when it generates" not in wider.stderr


def test_float32_norms_are_said_to_stop_transformers(cli, demo_folder, tmp_path):
    """transformers 5.23: "expected m1 and m2 to have the same dtype", but not for int4."""
    model = restored(demo_folder, tmp_path / "tune", "float32", "norm")
    formats = ("--to", "bnb:nf4", "--to", "fp8", "--to", "int4")
    run = cli("quantize", model, *formats, "--dry-run", "--json")
    nf4, fp8, int4 = json.loads(run.stdout)["engines"]
    assert (nf4["transformers"], fp8["transformers"]) == (None, None)
    assert "--to bf16 first" in nf4["notes"][0]
    assert int4["transformers"] == ["compressed-tensors"]
    assert cli("quantize", "demo", "--to", "bnb:nf4", "--dry-run").stderr.count("bf16 first") == 0
    done = cli("quantize", model, "--to", "fp8", "--out", tmp_path / "out")
    assert "--to bf16 first" in done.stderr
    assert "--to bf16 first" in (tmp_path / "out" / "tune-FP8" / "README.md").read_text()


def test_commands_that_fit_prints_can_be_run(cli, tmp_path):
    """Types that are nothing without an importance matrix come with a calibration."""
    found = json.loads(cli("fit", "--vram", "3GiB", "--context", "4k", "--json").stdout)
    commands = [run["command"] for run in found["estimates"]]
    for name in ("gguf:IQ1_S", "gguf:IQ3_XS", "gguf:Q2_K_S"):
        command = next(c for c in commands if f"--to {name} " in f"{c} ").split()[1:]
        command[1] = "demo"
        plan = cli(*command, "--dry-run")
        assert plan.returncode == 0, plan.stderr
        assert "needs --imatrix" not in plan.stdout
    small = ("--calibration-samples", "4", "--calibration-length", "64", "--out", tmp_path)
    done = cli(*command, *small)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "Qwen3-demo-Q2_K_S.gguf").stat().st_size > 1e6
    assert any("--to gguf:Q4_K_M" in c and "--calibration" not in c for c in commands)


def test_a_recipe_for_another_model_is_refused_before_a_download(cli, tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("formats: [int4]\noverrides: [{match: '*.experts.*', bits: 8}]\n")
    run = cli("quantize", "qwen3-8b", "--recipe", recipe, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert run.returncode == 2
    assert "'*.experts.*' matches no linear" in run.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "gptq:int4", "--calibration", "none.txt"], "There is no file none.txt"),
        (["--to", "gptq:int4", "--calibration", "balance"], "Did you mean balanced?"),
        (["--to", "gguf:Q4_K_M", "--imatrix", "none.gguf"], "no importance matrix none.gguf"),
        (["--to", "gptq:int4", "--device", "gpu"], "'gpu' is no device"),
    ],
)
def test_what_is_missing_is_said_before_a_model_is_downloaded(cli, tmp_path, words, said):
    run = cli("quantize", "qwen3-8b", *words, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert run.returncode == 2
    assert said in run.stderr


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_a_quantized_model_is_refused_before_its_weights_are_fetched(cli, packed_on_hub, dry_run):
    hub, env = packed_on_hub
    run = cli("quantize", "someone/Tune-GPTQ", "--to", "gguf:Q4_K_M", *dry_run, **env)
    assert run.returncode == 1
    assert "Tune-GPTQ is quantized already (gptq)." in run.stderr
    assert hub.served_bytes("config.json") > 0
    assert hub.served_bytes("model.safetensors") == 0


SHORT = ("--calibration-samples", "2", "--calibration-length", "32")


def test_a_run_cut_after_its_files_goes_on(cli, tmp_path):
    """Files are renamed one after another, and what they need is kept until all are there."""
    formats = ("--to", "bnb:nf4", "--to", "gguf:Q4_K_M", "--to", "gguf:Q8_0")
    call = ("quantize", "demo", *formats, "--calibration", "balanced", *SHORT, "--out", tmp_path)
    assert cli(*call).returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    first, second = sorted(made)

    done = cli(*call, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["artefacts"]
    assert [a["file_bytes"] for a in told[1:]] == [len(made[first]), len(made[second])]

    (tmp_path / ".importance-of-this-run").mkdir()
    (tmp_path / first).write_bytes(b"from a file that the cut run was to replace")
    (tmp_path / second).unlink()
    resumed = cli(*call, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")} == made


def test_resuming_leaves_a_file_alone_that_no_cut_run_explains(cli, tmp_path):
    stranger = tmp_path / "Qwen3-demo-Q8_0.gguf"
    stranger.write_bytes(b"somebody's")
    call = ("quantize", "demo", "--to", "int4", "--to", "gguf:Q8_0", *SHORT, "--out", tmp_path)
    refused = cli(*call, "--resume")
    assert refused.returncode == 1
    assert f"{stranger} exists already" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [stranger.name]


def test_room_for_files_is_looked_for_before_the_calibration(demo_folder, tmp_path, monkeypatch):
    """Qwen3-demo takes 7.1 MB as W4A16 and 8.4 MB as Q8_0; 64 MiB stay free."""
    from qwen3q.errors import DiskError
    from qwen3q.models.source import describe
    from qwen3q.plan.job import QuantizeRequest, job_of
    from qwen3q.quantize.run import quantize_targets

    job = job_of(QuantizeRequest(("int4", "gguf:Q8_0"), samples=2, length=32))
    room = type("Usage", (), {"free": (64 << 20) + 12_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    with pytest.raises(DiskError, match="GB free"):
        quantize_targets(describe(str(demo_folder)), job, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [(), ("--calibration", "balanced", *SHORT)],
    ids=["from the weights", "with a matrix of its own"],
)
def test_a_run_of_files_that_was_cut_at_its_end_sees_that_they_are_whole(cli, tmp_path, words):
    """Cut after the last rename, or between two: what has its name is whole."""
    formats = ("--to", "gguf:Q8_0", "--to", "gguf:Q4_K_M")
    call = ("quantize", "demo", *formats, *words, "--out", tmp_path)
    assert cli(*call).returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = cli(*call, "--resume", "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)["artefacts"]
    assert [a["format"] for a in told] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    assert [a["file_bytes"] for a in told] == [len(made[Path(a["path"]).name]) for a in told]

    (tmp_path / "Qwen3-demo-Q4_K_M.gguf").unlink()
    assert cli(*call, "--resume").returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made

    other = ("--calibration", "self") if words else ("--yarn", "2")
    refused = cli("quantize", "demo", *formats, *words, *other, "--out", tmp_path, "--resume")
    assert refused.returncode == 1
    assert "Qwen3-demo-Q8_0.gguf exists already" in refused.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made


def test_a_file_of_other_weights_is_not_taken_for_whole(cli, demo_folder, tmp_path):
    """A fine-tune that was trained on in its folder: the same header, other data."""
    tune = shutil.copytree(demo_folder, tmp_path / "tune")
    call = ("quantize", tune, "--to", "gguf:Q8_0", "--out", tmp_path)
    assert cli(*call).returncode == 0
    weights = tune / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-2] + b"\0\0")
    refused = cli(*call, "--resume")
    assert refused.returncode == 1
    assert "exists already" in refused.stderr


def test_a_file_of_another_text_is_not_taken_for_whole(cli, tmp_path):
    """The text was edited under its name, or more of it is asked for."""
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six " * 50)
    call = ("quantize", "demo", "--to", "gguf:Q8_0", "--calibration", text, "--out", tmp_path)
    short, more = [("--calibration-length", "32", "--calibration-samples", n) for n in "23"]
    assert cli(*call, *short).returncode == 0
    assert cli(*call, *short, "--resume").returncode == 0
    made = (tmp_path / "Qwen3-demo-Q8_0.gguf").stat()
    changed = made.st_mtime_ns + 10**9
    for words, time in ((more, made.st_mtime_ns), (short, changed)):
        os.utime(text, ns=(time, time))
        refused = cli(*call, *words, "--resume")
        assert refused.returncode == 1
        assert "Qwen3-demo-Q8_0.gguf exists already" in refused.stderr


@pytest.mark.parametrize("formats", [("bf16",), ("fp8", "bf16")])
def test_a_disk_that_is_full_at_the_start_leaves_nothing(tmp_path, formats):
    """Files of at most 8 MB: FP8 fits, BF16 does not."""
    words = [sys.executable, "-m", "qwen3q", "quantize", "demo", "--out", str(tmp_path / "out")]
    for name in formats:
        words += ["--to", name]
    shell = ["bash", "-c", 'ulimit -f 12000; exec "$@"', "bash", *words]
    run = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "Can't reserve" in run.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


OUT_OF_ROOM = """
import errno, os, sys
from pathlib import Path
from qwen3q.cli.app import main

def full(path, *_, real=Path.write_text, **named):
    if path.name == "report.json":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return real(path, *_, **named)

Path.write_text = full
main()
"""


def test_a_disk_that_is_full_at_the_end_is_told_and_the_layers_are_kept(tmp_path, cli):
    words = ["quantize", "demo", "--to", "fp8", "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", OUT_OF_ROOM, *words], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stderr
    assert "report.json: No space left on device." in run.stderr
    assert "go on with --resume" in run.stderr
    assert "Traceback" not in run.stderr
    assert cli(*words, "--resume").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["Qwen3-demo-FP8"]


def test_importance_that_a_full_disk_cut_is_told_and_gone_on_with(cli, tmp_path):
    """Files of at most 8 MB: the importance fits, Q8_0 does not."""
    words = [sys.executable, "-m", "qwen3q", "quantize", "demo", "--to", "gguf:Q8_0"]
    words += ["--calibration", "balanced", "--calibration-samples", "2"]
    words += ["--calibration-length", "32", "--out", str(tmp_path)]
    shell = ["bash", "-c", 'ulimit -f 8000; exec "$@"', "bash", *words]
    run = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    [kept] = tmp_path.iterdir()
    assert f"The layers that were run are kept in {kept}: go on with --resume." in run.stderr
    assert cli(*words[3:], "--resume").returncode == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]


def test_exceptions_are_said_not_to_reach_gguf_files(cli):
    said = "overrides are for the folders: GGUF files keep the mix of their type"
    words = ["quantize", "demo", "--dry-run", "--to", "gguf:Q4_K_M", "--recipe"]
    for more in ([], ["--to", "gptq:int4"]):
        run = cli(*words, "mixed", *more)
        assert run.returncode == 0, run.stderr
        assert said in " ".join(run.stderr.split())
    assert said not in " ".join(cli(*words, "balanced").stderr.split())


def test_a_text_without_a_name_is_not_the_default_one(cli, tmp_path):
    """As an empty variable of a shell gives it."""
    run = cli("quantize", "demo", "--to", "gptq:int4", "--calibration", "", "--out", tmp_path)
    assert run.returncode == 2
    assert "is a folder" in run.stderr


def test_a_format_that_is_only_estimated_is_refused_before_a_download(cli, tmp_path):
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = cli("quantize", "qwen3-8b", "--to", "nvfp4", "--out", tmp_path / "out", **offline)
    assert run.returncode == 2
    assert "nvfp4 can be estimated but not written" in run.stderr


def test_a_file_of_another_calibration_is_not_taken_for_whole(cli, tmp_path):
    """The folders of such a run are refused by their journal."""
    text = tmp_path / "text.txt"
    text.write_text("A lamp stood in the window, and nobody had lit it. " * 40)
    call = ("quantize", "demo", "--to", "gguf:Q4_K_M", "--calibration", text, "--out", tmp_path)
    assert cli(*call, *SHORT).returncode == 0
    assert cli(*call, *SHORT, "--resume").returncode == 0
    more = cli(*call, "--calibration-samples", "3", "--calibration-length", "32", "--resume")
    assert more.returncode == 1
    assert "exists already" in more.stderr

    text.write_text(text.read_text().replace("lamp", "candle"))
    other = cli(*call, *SHORT, "--resume")
    assert other.returncode == 1
    assert "exists already" in other.stderr
