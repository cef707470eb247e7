"""``qwen3q quantize`` as a user meets it: plans, files, and one sentence for what is wrong."""

from __future__ import annotations

import json
import shutil
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


@pytest.mark.parametrize("words", [("--calibration", "balanced"), ("--recipe",)])
def test_the_plan_of_a_calibrated_file_is_exact_before_any_text_is_read(
    cli, moe_folder, tmp_path, words
):
    """All that a file states of its importance matrix but the number of rows is known before."""
    gguf = pytest.importorskip("gguf")
    if words == ("--recipe",):
        text = tmp_path / "texts" / "own.jsonl"
        text.parent.mkdir()
        text.write_text(json.dumps({"text": "One two three four five six seven. " * 40}) + "\n")
        recipe = tmp_path / "own.yaml"
        recipe.write_text(f"formats: [gguf:IQ2_XS]\ncalibration: {{source: {text}, thinking: yes}}")
        words = (*words, recipe)
    more = ("--calibration-length", "32", "--json")
    call = ("quantize", moe_folder, "--to", "gguf:IQ2_XS", "--to", "gguf:Q4_K_M", *words, *more)
    planned = json.loads(cli(*call, "--dry-run").stdout)["plans"]
    done = cli(*call, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for plan, artefact in zip(planned, json.loads(done.stdout)["artefacts"], strict=True):
        file = Path(artefact["path"])
        assert plan["file_bytes_exact"]
        assert plan["file_bytes"] == artefact["file_bytes"] == file.stat().st_size
    read = gguf.GGUFReader(file)
    linears = [t for t in read.tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    stated = read.fields["quantize.imatrix.entries_count"].contents()
    assert stated == sum("ffn_gate_inp" not in tensor.name for tensor in linears)


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


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_a_model_without_a_chat_template_is_told(cli, demo_folder, tmp_path, dry_run):
    """Some folders come without tokenizer_config.json; chat_template.jinja does as well."""
    model = shutil.copytree(demo_folder, tmp_path / "tune")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").unlink()
    said = f"{model} has no chat template"
    call = ("quantize", model, "--to", "gguf:Q8_0", "--out", tmp_path, "--force", *dry_run)
    run = cli(*call)
    assert run.returncode == 0, run.stderr
    assert said in " ".join(run.stderr.split())
    assert said in json.loads(cli(*call, "--json").stdout)["notes"][0]
    folders = ("quantize", model, "--to", "fp8", "--dry-run")
    assert said in " ".join(cli(*folders).stderr.split())
    (model / "chat_template.jinja").write_text(config["chat_template"])
    assert said not in " ".join(cli(*call).stderr.split())
    if not dry_run:
        inspected = json.loads(cli("inspect", tmp_path / "tune-Q8_0.gguf", "--json").stdout)
        assert inspected["facts"]["chat template"] == "yes"


def test_a_missing_chat_template_is_told_when_it_is_quantized_and_when_it_is_needed(
    cli, demo_folder, tmp_path
):
    bare, out = tmp_path / "bare", tmp_path / "out"
    bare.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(demo_folder / name, bare)
    made = cli("quantize", bare, "--to", "gguf:Q8_0", "--out", tmp_path)
    assert made.returncode == 0
    assert "has no chat template" in made.stderr
    assert "template" not in cli("quantize", "demo", "--to", "gguf:Q8_0", "--dry-run").stderr
    talked = cli("chat", tmp_path / "bare-Q8_0.gguf", "-p", "What is 1 + 1?")
    asked = cli("eval", tmp_path / "bare-Q8_0.gguf", "--reference", "demo", "--gate", "--out", out)
    for refused in (talked, asked):
        assert refused.returncode == 1
        said, hint = refused.stderr.splitlines()
        assert "no chat template" in said
        assert "chat_template.jinja" in hint
    assert not out.exists()
