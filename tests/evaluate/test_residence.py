"""Weights that stay packed answer as unpacked ones do, and what does not fit is told at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import random_rows, tiny_model, tiny_scheme

from eval.bench.pretend_gpu import pretend_gpus
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import OutOfMemoryError
from qwen3q.evaluate import residence, torch_backend
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions, open_backend
from qwen3q.evaluate.evaluation import EvaluationOptions, evaluate
from qwen3q.evaluate.gate_run import GateOptions
from qwen3q.evaluate.measure import TextOptions
from qwen3q.evaluate.residence import Residence
from qwen3q.evaluate.sampling import Prompt, Sampling
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize import folder as driver
from qwen3q.quantize.solve import SolveOptions

FORMATS = ("gptq:int4", "gptq:int3", "awq:int4", "int4", "int8", "fp8", "bf16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> dict[str, Path]:
    """A random model in every format, by name."""
    out = tmp_path_factory.mktemp("packed")
    source = describe(str(tiny_model(out / "Tiny", demo_folder)))
    rows = random_rows(source.config.vocab_size)
    schemes = list(map(tiny_scheme, FORMATS))
    with Checkpoint(out / "Tiny") as checkpoint:
        jobs = driver.folder_jobs(source, checkpoint, schemes, out, SolveOptions("rtn", False))
        driver.quantize_folders(source, checkpoint, jobs, rows)
    return {name: job.target for name, job in zip(FORMATS, jobs, strict=True)}


def answers(model: str, device: str) -> tuple[list[list[int]], np.ndarray, int]:
    """Greedy and drawn answers, the logits behind a prompt, and the bytes of the weights."""
    prompts = [Prompt([5, 6, 7, 8 + n], Sampling(0.7, seed=n)) for n in range(3)]
    options = BackendOptions(BackendKind.TORCH, threads=1, device=device)
    with open_backend(find_artefact(model), options, 64) as backend:
        made = backend.generate(prompts, 16, frozenset({1}))
        assert isinstance(backend, torch_backend.TorchBackend)
        cached = backend.cached_model()
        logits = cached.read([5, 6, 7], cached.cache()).cpu().numpy()
        return made, logits, cached.weight_bytes


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_answer_as_unpacked_ones(
    folders: dict[str, Path], name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, logits, whole = answers(str(folders[name]), "cpu")
    if device != "cpu":
        pretend_gpus(monkeypatch, device)
    monkeypatch.setattr(torch_backend, "residence", lambda *_: Residence.PACKED)
    packed_made, packed_logits, packed = answers(str(folders[name]), device)
    assert packed_made == made
    np.testing.assert_allclose(packed_logits, logits, atol=1e-5)
    assert packed < 0.6 * whole


@pytest.mark.usefixtures("products_of_torch")
@pytest.mark.parametrize("kind", ["experts", "gguf", "nf4"])
def test_experts_gguf_and_bitsandbytes_too(
    kind: str,
    moe_folder: Path,
    demo_gguf: Path,
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = {"experts": moe_folder, "gguf": demo_gguf}.get(kind)
    if model is None:
        with Checkpoint(demo_folder) as checkpoint:
            source = describe(str(demo_folder))
            jobs = driver.folder_jobs(source, checkpoint, [parse_scheme("bnb:nf4")], tmp_path)
            driver.quantize_folders(source, checkpoint, jobs)
        model = jobs[0].target
    made, logits, _ = answers(str(model), "cpu")
    pretend_gpus(monkeypatch)
    monkeypatch.setattr(torch_backend, "residence", lambda *_: Residence.PACKED)
    packed_made, packed_logits, _ = answers(str(model), "cuda")
    assert packed_made == made
    np.testing.assert_allclose(packed_logits, logits, atol=1e-4)


def test_what_is_free_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = find_artefact("demo")
    assert artefact.file_bytes is not None
    cpu = torch.device("cpu")
    for free, expected in [
        (None, Residence.FLOAT),
        (5 * artefact.parameters, Residence.FLOAT),
        (4 * artefact.parameters, Residence.PACKED),
        (int(1.2 * artefact.file_bytes), Residence.PACKED),
    ]:
        monkeypatch.setattr(residence, "free_memory", lambda free=free: free)
        assert residence.residence(artefact, cpu) is expected
    monkeypatch.setattr(residence, "free_memory", lambda: artefact.file_bytes)
    with pytest.raises(OutOfMemoryError, match=r"demo takes 0\.0 GB as it is stored, and 0\.0 GB"):
        residence.residence(artefact, cpu)
    pretend_gpus(monkeypatch)
    assert residence.residence(artefact, torch.device("cuda:1")) is Residence.FLOAT


def test_a_gate_that_does_not_fit_is_left_out_or_refused(
    monkeypatch: pytest.MonkeyPatch, demo_gguf: Path
) -> None:
    monkeypatch.setattr(residence, "free_memory", lambda: 1000)
    options = EvaluationOptions(
        TextOptions(context=64, max_chunks=1),
        BackendOptions(threads=1, device="cpu"),
        gate=GateOptions(each=1, max_tokens=8),
    )
    text = "The river bends twice before it reaches the mill, and slows down. " * 20
    done = evaluate("demo", [str(demo_gguf)], "text", text, options)
    assert "gate" not in done.report
    assert len(done.report["results"]) == 1
    (note,) = done.notes
    assert "torch can't answer with it here. No questions were asked. Make a GGUF" in note
    with pytest.raises(OutOfMemoryError, match="torch can't answer"):
        evaluate("demo", [str(demo_gguf)], "text", text, replace(options, gate_decides=True))
