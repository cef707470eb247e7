"""Whole runs, and the figures of llama.cpp's own tool on the same files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from qwen3q.data.texts import evaluation_text
from qwen3q.errors import CheckpointError, DiskError, ModelError, UsageError
from qwen3q.evaluate import measure as measure_module
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions
from qwen3q.evaluate.llama_backend import LlamaBackend
from qwen3q.evaluate.measure import Run, TextOptions, measure_fidelity
from qwen3q.llama.capi import has_amx

TEXT = TextOptions(context=128, max_chunks=8)


def measure(reference: str, *names: str, kind: str = "auto", out=None, text=None) -> Run:
    return measure_fidelity(
        find_artefact(reference),
        [find_artefact(name) for name in names],
        text or evaluation_text("english"),
        TEXT,
        BackendOptions(BackendKind(kind), threads=2, device="cpu"),
        out=out,
    )


@pytest.fixture(scope="module")
def llama_run(demo_ggufs):
    names = [str(demo_ggufs[kind]) for kind in ("BF16", "Q8_0", "Q4_K_M", "Q2_K")]
    return measure(names[0], *names)


def test_fewer_bits_cost_more(llama_run):
    fidelity = [measured.fidelity for measured in llama_run.results]
    divergences = [f.kl_mean.value for f in fidelity]
    assert abs(divergences[0]) < 1e-6
    assert divergences == sorted(divergences)
    assert fidelity[0].top1.value == 1
    assert [f.top1.value for f in fidelity] == sorted(
        (f.top1.value for f in fidelity), reverse=True
    )
    assert fidelity[0].perplexity.value == pytest.approx(llama_run.reference.perplexity, rel=1e-6)
    assert {f.tokens for f in fidelity} == {8 * (128 - 1 - 64)}


def test_room_for_the_logits_is_looked_for_before_the_model_runs(demo_ggufs, tmp_path, monkeypatch):
    names = [str(demo_ggufs[kind]) for kind in ("BF16", "Q2_K")]
    # every one of 8 chunks scores the 63 tokens after its first half, 16 bits for each of 8,192
    needed = 8 * 63 * 8192 * 2
    spare = 64 << 20
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=needed + spare - 1))
    with monkeypatch.context() as unrun:
        unrun.setattr(measure_module, "open_backend", None)
        with pytest.raises(DiskError, match=r"has 0\.08 GB free; this needs 0\.08 GB") as refused:
            measure(*names, out=tmp_path)
    assert "504 positions take up to 0.01 GB" in refused.value.hint
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=needed + spare))
    measure(*names, out=tmp_path)
    assert needed / 2 < (tmp_path / "reference.logits").stat().st_size < needed + spare
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    measure(*names, out=tmp_path)


@pytest.mark.peer
def test_figures_equal_llama_perplexity(llama_run, demo_ggufs, llama_tools, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(evaluation_text("english"))
    common = ["-t", "2", "-c", "128", "-b", "512", "--chunks", "8"]
    common += ["--no-repack"] if has_amx() else []
    base = ["--kl-divergence-base", str(tmp_path / "base")]

    def tool(kind: str, *extra: str) -> str:
        command = [llama_tools / "llama-perplexity", "-m", demo_ggufs[kind], *common, *base]
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def compared(kind: str) -> str:
        """Now and then the tool loses lines of its log, the more the busier the machine is."""
        printed = (tool(kind, "--kl-divergence") for _ in range(9))
        ends = ("Mean PPL(Q)", "Mean    KLD", "Maximum KLD", "Median  KLD", "Same top p")
        return next(text for text in printed if all(end in text for end in ends))

    tool("BF16", "-f", str(text))
    for kind, measured in zip(("Q8_0", "Q4_K_M", "Q2_K"), llama_run.results[1:], strict=True):
        printed = compared(kind)

        def figure(label: str, printed: str = printed) -> tuple[float, float]:
            found = re.search(rf"{label}\s*:\s*(\S+)(?: ±\s*(\S+))?", printed)
            assert found, label
            return float(found[1]), float(found[2] or 0)

        ours = measured.fidelity
        for label, estimate in (
            (r"Mean PPL\(Q\)", ours.perplexity),
            (r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", ours.log_perplexity_ratio),
            ("Mean    KLD", ours.kl_mean),
        ):
            value, error = figure(label)
            assert estimate.value == pytest.approx(value, rel=1e-3, abs=1.5e-6)
            assert estimate.stderr == pytest.approx(error, rel=5e-3, abs=1.5e-6)
        for label, estimate in (
            ("99.9%   KLD", ours.kl_p999),
            ("99.0%   KLD", ours.kl_p99),
            ("Median  KLD", ours.kl_median),
        ):
            assert estimate.value == pytest.approx(figure(label)[0], rel=5e-3, abs=3e-6)
        for label, estimate in (("RMS Δp", ours.probability_rms), ("Same top p", ours.top1)):
            value, error = figure(label)
            assert 100 * estimate.value == pytest.approx(value, rel=1e-3, abs=1e-3)
            assert 100 * estimate.stderr == pytest.approx(error, rel=5e-3, abs=1e-3)


def test_torch_and_llama_agree_on_one_file(llama_run, demo_ggufs):
    torch_run = measure("demo", str(demo_ggufs["Q4_K_M"]), kind="torch")
    ours = torch_run.results[0].fidelity.perplexity.value
    assert ours == pytest.approx(llama_run.results[2].fidelity.perplexity.value, rel=0.01)
    assert torch_run.reference.perplexity == pytest.approx(
        llama_run.reference.perplexity, rel=0.001
    )


def test_stored_logits_serve_again_and_are_refused_for_another_text(demo_ggufs, tmp_path):
    file = str(demo_ggufs["Q8_0"])
    first = measure("demo", file, out=tmp_path)
    again = measure("demo", file, out=tmp_path)
    assert first.reference.backend
    assert again.reference.backend == first.reference.backend
    assert again.results[0].fidelity == first.results[0].fidelity
    with pytest.raises(UsageError, match=r"other reference logits: .*text "):
        measure("demo", file, out=tmp_path, text=evaluation_text("code"))
    with pytest.raises(UsageError, match=r"other reference logits: .*model "):
        measure(str(demo_ggufs["BF16"]), file, out=tmp_path)


def test_stored_logits_are_those_of_the_models_config_too(demo_folder, demo_ggufs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(demo_folder, model)
    file, out = str(demo_ggufs["Q8_0"]), tmp_path / "out"
    out.mkdir()
    measure(str(model), file, out=out)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    with pytest.raises(UsageError, match=r"other reference logits: model "):
        measure(str(model), file, out=out)


def test_another_tokenizer_is_refused(tmp_path, moe_folder):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(moe_folder, other)
    raw = json.loads((other / "tokenizer.json").read_text())
    raw["model"]["merges"] = raw["model"]["merges"][:-1]
    (other / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="another tokenizer"):
        measure("demo", str(other))


def test_a_short_text_is_refused():
    with pytest.raises(UsageError, match="tokens"):
        measure("demo", "demo", text="too short")


def test_a_model_that_cannot_be_read_is_no_file_that_cannot_be_written(
    demo_ggufs, tmp_path, monkeypatch
):
    artefact = find_artefact(str(demo_ggufs["Q8_0"]))

    def broken(self, chunks, first, progress=None):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "weights")
        yield

    monkeypatch.setattr(LlamaBackend, "logits", broken)
    options = TextOptions(context=64, max_chunks=1)
    for where in (tmp_path / "out", None):
        with pytest.raises(CheckpointError, match=r"Can't read weights: Input/output error\."):
            measure_fidelity(artefact, [], evaluation_text(), options, out=where)
    assert not (tmp_path / "out" / "reference.logits").exists()
