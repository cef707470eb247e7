"""The GGUF writer against llama.cpp's own quantizer and gguf-py's reader."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import CheckpointError, DiskError, UsageError
from qwen3q.formats.gguf_file import read_header
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.models.config import read_config
from qwen3q.models.source import describe
from qwen3q.models.yarn import with_yarn
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize.checks import check_targets
from qwen3q.quantize.gguf import gguf_jobs, write_gguf
from qwen3q.quantize.run import QuantizeOptions

WITHOUT_IMATRIX = [
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M",
    "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4_MOE",
]  # fmt: skip


def write(folder: Path, out: Path, types: list[str], threads: int = 2) -> dict[str, Path]:
    config = read_config(folder)
    with Checkpoint(folder) as checkpoint:
        jobs = gguf_jobs(folder, config, Provenance("m"), [FILE_TYPES[t] for t in types], out)
        write_gguf(checkpoint, jobs, threads=threads)
    return {t: job.target for t, job in zip(types, jobs, strict=True)}


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and data of every tensor, as gguf-py reads them."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def llama_quantize(source: Path, target: Path, file_type: str) -> None:
    import llama_cpp

    from qwen3q.llama.capi import collect_log

    collect_log()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type].id
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert code == 0


@pytest.fixture(scope="module", params=["dense", "moe", "odd"])
def written(request, tmp_path_factory, demo_folder, moe_folder, odd_folder):
    """Every type of one model, written by us, and its folder."""
    folder = {"dense": demo_folder, "moe": moe_folder, "odd": odd_folder}[request.param]
    out = tmp_path_factory.mktemp(request.param)
    return folder, write(folder, out, WITHOUT_IMATRIX)


@pytest.mark.parametrize("file_type", WITHOUT_IMATRIX)
def test_tensor_data_equals_llama_model_quantize(written, file_type, tmp_path):
    _, files = written
    theirs = tmp_path / "theirs.gguf"
    llama_quantize(files["F32"], theirs, file_type)
    assert tensors(files[file_type]) == tensors(theirs)


def test_bf16_source_gives_the_same_blocks_as_f32(written, tmp_path):
    _, files = written
    theirs = tmp_path / "theirs.gguf"
    llama_quantize(files["BF16"], theirs, "Q4_K_M")
    assert tensors(files["Q4_K_M"]) == tensors(theirs)


def test_f32_file_holds_the_checkpoint(written):
    from safetensors import safe_open

    folder, files = written
    ours = {t.name: t.data for t in gguf.GGUFReader(files["F32"]).tensors}
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        q = weights.get_tensor("model.layers.1.self_attn.q_proj.weight").float().numpy()
        np.testing.assert_array_equal(ours["blk.1.attn_q.weight"], q)
        if "blk.1.ffn_up_exps.weight" in ours:
            up = weights.get_tensor("model.layers.1.mlp.experts.2.up_proj.weight").float().numpy()
            np.testing.assert_array_equal(ours["blk.1.ffn_up_exps.weight"][2], up)


def test_planned_size_is_the_files_size(written):
    folder, files = written
    for file_type, path in files.items():
        job = gguf_jobs(
            folder, read_config(folder), Provenance("m"), [FILE_TYPES[file_type]], path.parent
        )[0]
        assert job.plan.overhead_exact
        assert job.plan.file_bytes == path.stat().st_size
        header = read_header(path)
        assert sum(t.nbytes for t in header.tensors.values()) == job.plan.tensor_bytes


def test_metadata_of_a_moe_with_yarn(moe_folder, tmp_path):
    config = with_yarn(read_config(moe_folder), 4)
    with Checkpoint(moe_folder) as checkpoint:
        source = Provenance("m", "org/name", "abc")
        jobs = gguf_jobs(moe_folder, config, source, [FILE_TYPES["Q8_0"]], tmp_path)
        write_gguf(checkpoint, jobs, threads=2)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(jobs[0].target).fields.items()}
    original = read_config(moe_folder).max_position_embeddings
    assert fields["qwen3moe.rope.scaling.type"] == "yarn"
    assert fields["qwen3moe.rope.scaling.factor"] == 4
    assert fields["qwen3moe.rope.scaling.original_context_length"] == original
    assert fields["qwen3moe.context_length"] == 4 * original
    assert fields["qwen3moe.expert_count"] == config.num_experts
    assert fields["qwen3moe.expert_used_count"] == config.num_experts_per_tok
    assert fields["qwen3moe.attention.key_length"] == config.head_dim
    generation = json.loads((moe_folder / "generation_config.json").read_text())
    for key, name in (("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p")):
        assert fields[f"general.sampling.{name}"] == pytest.approx(generation[key])
    assert "general.sampling.min_p" not in fields
    assert fields["general.source.repo_url"] == "https://huggingface.co/org/name"
    template = json.loads((moe_folder / "tokenizer_config.json").read_text())["chat_template"]
    assert fields["tokenizer.chat_template"] == template
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"


def test_files_that_are_there_are_refused_before_anything_is_calibrated(demo_folder, tmp_path):
    source = describe(str(demo_folder))
    job = job_of(QuantizeRequest(("gguf:Q8_0",), calibration="balanced"))
    target = tmp_path / "demo-Q8_0.gguf"
    assert check_targets(source, job, tmp_path, QuantizeOptions()) == [FILE_TYPES["Q8_0"]]
    target.touch()
    with pytest.raises(DiskError, match=r"Q8_0\.gguf exists already"):
        check_targets(source, job, tmp_path, QuantizeOptions())
    assert check_targets(source, job, tmp_path, QuantizeOptions(replace=True))
    target.unlink()
    target.mkdir()
    with pytest.raises(DiskError, match="is a folder"):
        check_targets(source, job, tmp_path, QuantizeOptions(replace=True))


@pytest.mark.parametrize("factor", [0.5, 1.0, 99.0, float("nan")])
def test_factors_of_yarn_that_make_no_sense_are_refused(factor, moe_folder):
    with pytest.raises(UsageError):
        with_yarn(read_config(moe_folder), factor)


def test_threads_do_not_change_a_byte(demo_folder, tmp_path):
    one = write(demo_folder, tmp_path / "one", ["Q4_K_M"], threads=1)
    four = write(demo_folder, tmp_path / "four", ["Q4_K_M"], threads=4)
    assert one["Q4_K_M"].read_bytes() == four["Q4_K_M"].read_bytes()


def test_imatrix_type_is_refused_without_one(demo_folder, tmp_path):
    with pytest.raises(UsageError, match="importance matrix") as caught:
        write(demo_folder, tmp_path, ["IQ2_XS"])
    assert "Add --calibration balanced" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_nan_is_refused_by_name_and_leaves_nothing(nan_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*NaN"):
        write(nan_folder, tmp_path, ["Q4_K_M", "Q8_0"])
    assert not list(tmp_path.iterdir())


def test_full_disk_is_told_before_the_start(demo_folder, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000)
    )
    with pytest.raises(DiskError, match="free; this needs"):
        write(demo_folder, tmp_path, ["Q8_0"])
    assert not list(tmp_path.iterdir())


def test_killed_run_leaves_no_target(demo_folder, tmp_path):
    """SIGKILL in the middle: no file under the final name, and the same command again succeeds."""
    script = (
        "import itertools, os, signal, sys; import qwen3q.quantize.gguf as g\n"
        "real, calls = g._write, itertools.count(1)\n"
        "def write(*a):\n"
        "    call = next(calls); real(*a)\n"
        "    if call == int(os.environ['KILL_AT']): os.kill(os.getpid(), signal.SIGKILL)\n"
        "g._write = write\n"
        "from qwen3q.cli.app import main\n"
        f"sys.argv = ['qwen3q', 'quantize', {str(demo_folder)!r}, '--to', 'gguf:Q8_0',"
        f" '--out', {str(tmp_path)!r}]\n"
        "main()"
    )

    def run(kill_at: int) -> int:
        env = {**os.environ, "KILL_AT": str(kill_at)}
        return subprocess.run([sys.executable, "-c", script], env=env, check=False).returncode

    assert run(20) == -signal.SIGKILL
    assert not list(tmp_path.glob("*.gguf"))
    assert run(0) == 0
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".gguf"
    assert tensors(file)


@pytest.mark.parametrize(
    ("file_type", "size", "is_held"),
    [
        *((name, 1e30, False) for name in ("F16", "Q8_0", "Q6_K", "IQ4_XS", "Q4_K_M")),
        ("F16", 7e4, False),
        *((name, 1e30, True) for name in ("F32", "BF16")),
        *((name, 6e4, True) for name in ("F16", "Q8_0", "Q6_K", "IQ4_XS", "Q4_K_M")),
    ],
)
def test_a_weight_that_a_type_does_not_hold_is_refused(
    demo_folder, tmp_path, file_type, size, is_held
):
    """One exponent is damaged. What is written, gguf-py reads as about that weight."""
    folder = shutil.copytree(demo_folder, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    damaged = "model.layers.2.mlp.down_proj.weight"
    weights[damaged][5, 7] = size
    save_file(weights, folder / "model.safetensors")
    if not is_held:
        with pytest.raises(CheckpointError, match=f"{damaged} has weights too large for") as caught:
            write(folder, tmp_path, [file_type])
        assert caught.value.hint
        assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
        return
    made = gguf.GGUFReader(write(folder, tmp_path, [file_type])[file_type])
    [tensor] = [t for t in made.tensors if t.name == "blk.2.ffn_down.weight"]
    read = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(256, 768)
    assert read[5, 7] == pytest.approx(size, rel=0.1)
