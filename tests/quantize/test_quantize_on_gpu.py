"""Calibration on pretended GPUs: nothing is left on a wrong device, and weights are the same."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend_gpu import pretend_gpus
from safetensors.torch import load_file

from qwen3q.calibrate.rows import TokenRows
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.config import read_config
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize import arithmetic, linears
from qwen3q.quantize import folder as driver
from qwen3q.quantize.solve import SolveOptions
from qwen3q.quantize.stream import StreamOptions
from qwen3q.synthetic.checkpoint import write_checkpoint

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
FORMATS = {"gptq": ("gptq:int4", "int8"), "awq": ("awq:int4",)}
"""Per algorithm."""


@pytest.fixture(scope="module", params=["dense", "experts"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    more = EXPERTS if request.param == "experts" else {}
    write_checkpoint(replace(read_config(demo_folder), **TINY, **more), folder)
    return folder


def quantized(
    model: Path, out: Path, devices: tuple[str, ...], options: SolveOptions
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors that a run writes, importance matrix included, by file name."""
    source = describe(str(model))
    generator = random.Random(0)
    rows = tuple(
        tuple(generator.randrange(source.config.vocab_size) for _ in range(32)) for _ in range(8)
    )
    formats = FORMATS[options.algorithm]
    schemes = [parse_scheme(name, group_size=32 if "int4" in name else None) for name in formats]
    with Checkpoint(model) as checkpoint:
        driver.quantize_folders(
            source,
            checkpoint,
            driver.folder_jobs(source, checkpoint, schemes, out, options),
            TokenRows(rows, {"name": "random"}),
            driver.RunOptions(stream=StreamOptions(devices)),
            importance=out,
        )
    return {
        str(path.relative_to(out)): load_file(path) for path in sorted(out.rglob("*.safetensors"))
    }


@pytest.mark.parametrize(
    ("devices", "algorithm"),
    [(("cuda:0", "cuda:1"), "gptq"), (("cuda",), "awq"), (("mps",), "gptq")],
)
def test_what_gpus_make_is_what_the_processor_makes(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: tuple[str, ...],
    algorithm: str,
) -> None:
    monkeypatch.setattr(arithmetic, "_fast_bfloat16", lambda: False)
    for parts in ("SOLVED_AT_ONCE", "SOLVED_ON_ACCELERATOR"):
        monkeypatch.setattr(linears, parts, 64 * 64)
    options = SolveOptions(algorithm, min_expert_tokens=64, sweeps=1)
    here = quantized(model, tmp_path / "cpu", ("cpu",), options)
    pretend_gpus(monkeypatch, devices[0].partition(":")[0])
    there = quantized(model, tmp_path / "gpu", devices, options)
    assert len(here) > len(FORMATS[algorithm])
    assert here.keys() == there.keys()
    for file, tensors in here.items():
        assert tensors.keys() == there[file].keys()
        assert [name for name in tensors if not torch.equal(tensors[name], there[file][name])] == []
