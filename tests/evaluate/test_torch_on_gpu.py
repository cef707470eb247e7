"""The torch backend on pretended GPUs: the same logits, answers and speed rows as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.bench.pretend_gpu import pretend_gpus
from qwen3q.evaluate import input_rounding
from qwen3q.evaluate.artefact import Artefact, find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions, open_backend
from qwen3q.evaluate.nvml import GpuMeter
from qwen3q.evaluate.sampling import GREEDY, Prompt, Sampling
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_torch import run_torch
from qwen3q.progress import silent

CONTEXT = 24
GPUS = ("cuda", "cuda:1", "mps")


def computed(artefact: Artefact, device: str) -> tuple[np.ndarray, list[list[int]]]:
    """Logits of two chunks, and answers side by side, some behind a beginning they share."""
    rng = np.random.default_rng(0)
    chunks = rng.integers(0, 8000, (2, CONTEXT)).astype(np.int32)
    beginning = rng.integers(0, 8000, 9).tolist()
    prompts = [
        Prompt(beginning + rng.integers(0, 8000, n).tolist(), sampling)
        for n, sampling in enumerate([GREEDY, Sampling(0.8, seed=1), GREEDY], 2)
    ]
    options = BackendOptions(BackendKind.TORCH, threads=1, device=device)
    with open_backend(artefact, options, CONTEXT) as backend:
        assert str(backend.device).startswith(device)
        rows = [rows.values.copy() for rows in backend.logits(chunks, 4)]
        answers = backend.generate(prompts, 12, frozenset({2}))
    return np.concatenate(rows), answers


@pytest.fixture(params=["demo", "experts", "gguf"])
def artefact(request: pytest.FixtureRequest, moe_folder: Path, demo_gguf: Path) -> Artefact:
    names = {"demo": "demo", "experts": str(moe_folder), "gguf": str(demo_gguf)}
    return find_artefact(names[request.param])


@pytest.mark.usefixtures("products_of_torch")
@pytest.mark.parametrize("device", GPUS)
def test_logits_and_answers_are_those_of_the_processor(
    artefact: Artefact, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, answers = computed(artefact, "cpu")
    pretend_gpus(monkeypatch, device.partition(":")[0])
    there, theirs = computed(artefact, device)
    np.testing.assert_allclose(there, logits, atol=1e-4)
    assert theirs == answers
    assert any(answers)


@pytest.mark.parametrize("device", GPUS)
@pytest.mark.parametrize(
    "rounding",
    [
        input_rounding.int8_per_token,
        input_rounding.int8_beside_outliers,
        input_rounding.fp8_per_token,
        input_rounding.fp8_per_group,
        input_rounding.ggml_q8,
        input_rounding.ggml_q8_k,
    ],
)
def test_inputs_are_rounded_as_on_the_processor(
    rounding: input_rounding.Rounding, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = 3 * torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(0))
    here = rounding(x)
    pretend_gpus(monkeypatch, device.partition(":")[0])
    there = rounding(x.to(device))
    assert there.device == x.to(device).device
    assert torch.equal(there.cpu(), here)
    assert not torch.equal(here, x)


@pytest.mark.parametrize("device", GPUS)
def test_speed_is_measured_on_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = device.partition(":")[0]
    pretend_gpus(monkeypatch, kind)
    options = SpeedOptions(prompts=(8,), generate=2, depths=(0, 8), repeats=1, threads=1)
    with GpuMeter() as meter:
        run = run_torch(find_artefact("demo"), options, device, meter, None, silent)
    tests = [(row["phase"], row["depth"]) for row in run.rows]
    assert sorted(tests) == [("decode", 0), ("decode", 8), ("prefill", 0), ("prefill", 8)]
    assert run.memory[0]["device"] == device
    assert run.machine["device"] == device
