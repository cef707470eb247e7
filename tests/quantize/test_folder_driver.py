"""The folder driver: what it writes, refuses and leaves behind; and what verify finds."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_rows, tiny_model, tiny_scheme

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.writer import ShardWriter
from qwen3q.errors import CheckpointError, DiskError, Qwen3qError, UsageError
from qwen3q.formats.reader import QuantizedFolder
from qwen3q.models.config import read_config
from qwen3q.models.source import describe
from qwen3q.plan.schemes import Override, Scheme, parse_scheme
from qwen3q.quantize import folder as driver
from qwen3q.quantize.artefact import FolderJob, artefact_config
from qwen3q.quantize.verify import verify_folder
from qwen3q.synthetic.checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "Tiny", demo_folder)


def make(
    model: Path, out: Path, *schemes: Scheme | str, **run: bool
) -> tuple[list[FolderJob], driver.FolderResults]:
    source = describe(str(model))
    with Checkpoint(model) as checkpoint:
        parsed = [parse_scheme(s) if isinstance(s, str) else s for s in schemes]
        jobs = driver.folder_jobs(source, checkpoint, parsed, out)
        return jobs, driver.quantize_folders(source, checkpoint, jobs, run=driver.RunOptions(**run))


def test_a_folder_is_what_was_planned(model: Path, tmp_path: Path) -> None:
    jobs, results = make(model, tmp_path, "fp8", "bf16")
    assert [path.name for path in results.folders] == ["Tiny-FP8", "Tiny-BF16"]
    for job in jobs:
        with Checkpoint(job.target) as checkpoint:
            assert {i.name: (i.shape, i.nbytes) for i in checkpoint.tensors.values()} == {
                tensor.name: (tensor.shape, tensor.nbytes) for tensor in job.plan.tensors
            }
        size = sum(path.stat().st_size for path in job.target.iterdir())
        assert abs(size - job.plan.file_bytes) < 20_000
        names = {path.name for path in job.target.iterdir()}
        assert {"README.md", "report.json", "manifest.json", "tokenizer.json"} <= names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Tiny-BF16", "Tiny-FP8"]
    original = load_file(model / "model.safetensors")
    for name, tensor in load_file(tmp_path / "Tiny-BF16" / "model.safetensors").items():
        assert torch.equal(tensor, original[name])


def test_progress_counts_every_unit_of_every_folder(model: Path, tmp_path: Path) -> None:
    source, told = describe(str(model)), []
    with Checkpoint(model) as checkpoint:
        jobs = driver.folder_jobs(source, checkpoint, map(parse_scheme, ("fp8", "bf16")), tmp_path)
        driver.quantize_folders(source, checkpoint, jobs, progress=lambda *now: told.append(now))
    units = 2 * (source.config.num_hidden_layers + 1)
    counted = [now for now in told if now[2] == "packing"]
    assert counted == [(done, units, "packing") for done in range(units + 1)]
    sums = {label: (done, total) for done, total, label in told[len(counted) :]}
    assert sums.keys() == {f"checksums of {name}" for name in ("Tiny", "Tiny-FP8", "Tiny-BF16")}
    for folder in ("Tiny-FP8", "Tiny-BF16"):
        listed = json.loads((tmp_path / folder / "manifest.json").read_text())["outputs"]
        assert sums[f"checksums of {folder}"] == (len(listed), len(listed))


@pytest.mark.parametrize("name", ["fp8", "int4", "gptq:int4"])
def test_a_weight_so_large_that_errors_overflow_is_refused(
    demo_folder: Path, tmp_path: Path, name: str
) -> None:
    """A damaged exponent, still finite: no artefact, and no report with a NaN."""
    model = tiny_model(tmp_path / "Tiny", demo_folder)
    weights = load_file(model / "model.safetensors")
    damaged = "model.layers.0.mlp.down_proj.weight"
    weights[damaged][3, 5] = 1e30
    save_file(weights, model / "model.safetensors")
    source, out = describe(str(model)), tmp_path / "out"
    rows = random_rows(source.config.vocab_size)
    with Checkpoint(model) as checkpoint:
        jobs = driver.folder_jobs(source, checkpoint, [tiny_scheme(name)], out)
        with pytest.raises(CheckpointError, match=f"the error of {damaged} is no number") as caught:
            driver.quantize_folders(source, checkpoint, jobs, rows)
    assert "checksums" in caught.value.hint
    assert not out.exists()


def test_overrides_keep_a_linear_as_it_is(model: Path, tmp_path: Path) -> None:
    scheme = parse_scheme("fp8", overrides=(Override("*.down_proj", keep_float=True),))
    make(model, tmp_path, scheme)
    with QuantizedFolder(tmp_path / "Tiny-FP8") as folder:
        kinds = {w.spec.role.value: w.storage.value for w in folder.weights.values()}
        assert (kinds["down_proj"], kinds["up_proj"]) == ("float", "fp8")
        kept = folder.quantization["modules_to_not_convert"]
    assert "model.layers.1.mlp.down_proj" in kept
    assert all(check.passed for check in verify_folder(tmp_path / "Tiny-FP8"))


def test_a_target_that_exists_is_left_alone(model: Path, tmp_path: Path) -> None:
    make(model, tmp_path, "fp8")
    marker = tmp_path / "Tiny-FP8" / "mine.txt"
    marker.write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        make(model, tmp_path, "fp8")
    assert marker.exists()
    left = tmp_path / ".Tiny-FP8.replaced"
    left.mkdir()
    (left / "of a killed run").touch()
    make(model, tmp_path, "fp8", replace=True)
    assert not marker.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny-FP8"]


def test_only_what_qwen3q_made_is_replaced(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "Tiny-FP8"
    target.mkdir()
    make(model, tmp_path, "fp8", replace=True)
    (target / "manifest.json").rename(target / "notes.json")
    with pytest.raises(UsageError, match="qwen3q did not make it"):
        make(model, tmp_path, "fp8", replace=True)
    assert (target / "notes.json").exists()


def test_a_folder_that_appears_meanwhile_is_left_alone(model: Path, tmp_path: Path) -> None:
    source, mine = describe(str(model)), tmp_path / "Tiny-FP8" / "mine.txt"

    def appear(*_: object) -> None:
        mine.parent.mkdir(exist_ok=True)
        mine.touch()

    with Checkpoint(model) as checkpoint:
        jobs = driver.folder_jobs(source, checkpoint, [parse_scheme("fp8")], tmp_path)
        with pytest.raises(DiskError, match=r"Can't write .*Tiny-FP8"):
            driver.quantize_folders(source, checkpoint, jobs, progress=appear)
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


def test_resume_leaves_a_folder_alone_that_is_done_and_no_other(
    model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    write_checkpoint(read_config(model), copy)
    make(copy, tmp_path / "out", "fp8")
    [target] = (tmp_path / "out").iterdir()
    before = target.stat().st_ino
    make(copy, tmp_path / "out", "fp8", resume=True)
    assert target.stat().st_ino == before
    another_seed(copy)
    with pytest.raises(UsageError, match="exists already"):
        make(copy, tmp_path / "out", "fp8", resume=True)


def test_what_can_not_be_written_is_refused_before_anything_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="can be estimated but not written"):
        make(model, tmp_path, "nvfp4")
    with pytest.raises(UsageError, match="Two formats would both"):
        make(model, tmp_path, "fp8", "fp8")
    with pytest.raises(UsageError, match="need calibration text"):
        make(model, tmp_path, parse_scheme("gptq:int4", group_size=32))
    small = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: small)
    with pytest.raises(DiskError, match="GB free"):
        make(model, tmp_path, "fp8")
    assert not list(tmp_path.iterdir())


def test_a_journal_that_can_not_be_begun_is_not_left(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        make(model, tmp_path, "fp8")
    assert not list(tmp_path.iterdir())


def broken_in_layer(model: Path, folder: Path, layer: int) -> Path:
    write_checkpoint(read_config(model), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.{layer}.mlp.up_proj.weight"][5, 6] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_nan_is_named_and_early_failures_leave_nothing(model: Path, tmp_path: Path) -> None:
    broken = broken_in_layer(model, tmp_path / "broken", 0)
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight holds NaN"):
        make(broken, tmp_path / "out", "fp8")
    assert not (tmp_path / "out").exists()


def test_nan_in_a_late_layer_is_found_before_the_calibration(model: Path, tmp_path: Path) -> None:
    broken = broken_in_layer(model, tmp_path / "broken", 1)
    parsed = [tiny_scheme("gptq:int4"), parse_scheme("fp8")]
    rows = random_rows(read_config(broken).vocab_size)
    with Checkpoint(broken) as checkpoint:
        jobs = driver.folder_jobs(describe(str(broken)), checkpoint, parsed, tmp_path / "out")
        with pytest.raises(
            CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight holds"
        ) as error:
            driver.quantize_folders(describe(str(broken)), checkpoint, jobs, rows)
    assert "Fetch model.safetensors again" in error.value.hint
    assert "--resume" not in error.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hint", ["Free some.", ""])
def test_late_failures_keep_what_is_done_and_say_so(
    hint: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ShardWriter.write

    def full_disk(writer: ShardWriter, name: str, data: memoryview) -> str:
        if name.startswith("model.layers.1."):
            raise DiskError("No space left.", hint)
        return write(writer, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", full_disk)
        with pytest.raises(DiskError, match="No space left") as error:
            make(model, tmp_path, "fp8")
    assert error.value.hint.startswith(f"{hint}\nThe layers" if hint else "The layers")
    assert "--resume" in error.value.hint
    left = {".Tiny-FP8.partial", ".Tiny-FP8.journal.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == left
    with pytest.raises(UsageError, match="unfinished run"):
        make(model, tmp_path, "fp8")
    make(model, tmp_path, "fp8", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny-FP8"]


def interrupted(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leaves an fp8 run of ``model`` with everything done but the publishing."""
    with monkeypatch.context() as patch:
        patch.setattr(driver, "publish", stop)
        with pytest.raises(DiskError):
            make(model, out, "fp8")
    return out / f".{model.name}-FP8.partial"


def stop(*arguments: object, **options: object) -> None:
    raise DiskError("stopped by the test")


def another_seed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    config = read_config(folder)
    write_checkpoint(config, folder / "other", seed=7)
    (folder / "other" / "model.safetensors").rename(folder / "model.safetensors")


def another_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("assistant", "bot"))


@pytest.mark.parametrize(
    ("change", "says"), [(another_seed, "model was"), (another_template, "model files was")]
)
def test_resume_refuses_another_model(
    change: Callable[[Path], None],
    says: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Same shapes, same sizes, same names: a fine-tune, or the same model with a new template."""
    copy = tmp_path / "copy"
    write_checkpoint(read_config(model), copy)
    interrupted(copy, tmp_path / "out", monkeypatch)
    change(copy)
    with pytest.raises(UsageError, match=says):
        make(copy, tmp_path / "out", "fp8", resume=True)


def test_resume_does_damaged_layers_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(model, tmp_path / "whole", "fp8")
    partial = interrupted(model, tmp_path / "out", monkeypatch)
    shard = partial / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1000:] = bytes(1000)
    shard.write_bytes(data)
    make(model, tmp_path / "out", "fp8", resume=True)
    name = "Tiny-FP8/model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def flip_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def scale_of_infinity(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"][0, 0] = torch.inf
    save_file(tensors, path)


def drop_row(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["linears"].pop()
    path.write_text(json.dumps(report))


def other_scheme(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"fp8"', '"int8"'))


def add_to_card(folder: Path) -> None:
    with (folder / "README.md").open("a") as file:
        file.write("more figures")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def escape(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"config.json"', '"../config.json"'))


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def list_no_outputs(folder: Path) -> None:
    change_json(folder / "manifest.json", lambda m: m["outputs"].clear())


def list_no_tokenizer(folder: Path) -> None:
    change_json(folder / "manifest.json", lambda m: m["outputs"].pop("tokenizer.json"))


def list_no_inputs(folder: Path) -> None:
    change_json(folder / "manifest.json", lambda m: m["source"]["files"].clear())


def change_unlisted_config(folder: Path) -> None:
    change_json(folder / "manifest.json", lambda m: m["outputs"].pop("config.json"))
    change_json(folder / "config.json", lambda c: c["quantization_config"].clear())


def list_a_name_too_long(folder: Path) -> None:
    change_json(folder / "manifest.json", lambda m: m["outputs"].update({"x" * 999: {}}))


def add_weights(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "adapter.safetensors")


def add_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("damage", "failing"),
    [
        (list_no_outputs, {"checksums"}),
        (list_no_tokenizer, {"checksums"}),
        (list_no_inputs, {"source"}),
        (change_unlisted_config, {"layout", "checksums"}),
        (list_a_name_too_long, {"checksums"}),
        (add_weights, {"checksums"}),
        (add_notes, set()),
        (flip_weights, {"checksums"}),
        (cut_weights, {"layout", "values", "plan", "checksums"}),
        (scale_of_infinity, {"values", "plan", "checksums"}),
        (drop_row, {"report"}),
        (other_scheme, {"plan", "report", "checksums"}),
        (lose_tokenizer, {"tokenizer", "checksums"}),
        (add_to_card, set()),
        (escape, {"checksums", "source"}),
    ],
)
def test_verify_finds(
    damage: Callable[[Path], None], failing: set[str], model: Path, tmp_path: Path
) -> None:
    make(model, tmp_path, "fp8")
    folder = tmp_path / "Tiny-FP8"
    checks = verify_folder(folder, model)
    assert {check.name for check in checks if not check.passed} == set()
    assert len(checks) == 7
    damage(folder)
    try:
        found = {check.name for check in verify_folder(folder, model) if not check.passed}
    except Qwen3qError as error:
        pytest.fail(f"verify stopped: {error}")
    assert found == failing


@pytest.mark.parametrize("dtype", ["int3", None, True, []])
def test_verify_wants_dtypes_that_there_are(dtype: object, model: Path, tmp_path: Path) -> None:
    make(model, tmp_path, "fp8")
    folder = tmp_path / "Tiny-FP8"
    change_json(folder / "manifest.json", lambda m: m["source"]["dtypes"].update({"*": dtype}))
    with pytest.raises(CheckpointError, match="no manifest of qwen3q"):
        verify_folder(folder)


def test_verify_wants_every_file_of_the_plan_in_the_manifest(model: Path, tmp_path: Path) -> None:
    """GPTQ has the most files: its config stands in one of its own too."""
    rows = random_rows(read_config(model).vocab_size)
    with Checkpoint(model) as checkpoint:
        jobs = driver.folder_jobs(
            describe(str(model)), checkpoint, [tiny_scheme("gptq:int4")], tmp_path
        )
        driver.quantize_folders(describe(str(model)), checkpoint, jobs, rows)
    folder = jobs[0].target
    written = {path.name for path in folder.iterdir()}
    assert "quantize_config.json" in written
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    for missing in written - {"manifest.json", "report.json", "README.md"}:
        change_json(manifest, lambda m, name=missing: m["outputs"].pop(name))
        [failed] = [check for check in verify_folder(folder) if not check.passed]
        assert failed.detail == f"The manifest does not list {missing}."
        manifest.write_text(whole)


def test_verify_tells_what_lies_beside(model: Path, tmp_path: Path) -> None:
    make(model, tmp_path, "fp8")
    add_notes(tmp_path / "Tiny-FP8")
    checks = {check.name: check for check in verify_folder(tmp_path / "Tiny-FP8")}
    assert checks["checksums"].detail.endswith("; not of the manifest: notes.txt")


def test_verify_without_a_manifest(model: Path) -> None:
    checks = verify_folder(model)
    assert [check.name for check in checks if check.passed] == ["layout", "values", "tokenizer"]
    assert len(checks) == 3
    with pytest.raises(UsageError, match=r"has no manifest\.json"):
        verify_folder(model, model)


def test_configs_of_version_5_are_written_as_both_versions_read(demo_folder: Path) -> None:
    config = read_config(demo_folder)
    raw = {
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "num_local_experts": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    }
    out = artefact_config(raw, config, parse_scheme("bf16"))
    assert out == {
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "num_experts": 8,
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    }
