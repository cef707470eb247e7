"""Calibration on pretended GPUs: nothing is left on a wrong device, and weights are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import EXPERTS, random_rows, tiny_model, tiny_scheme

from eval.bench.pretend_gpu import pretend_gpus
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.source import describe
from qwen3q.quantize import arithmetic, linears
from qwen3q.quantize import folder as driver
from qwen3q.quantize.solve import SolveOptions
from qwen3q.quantize.stream import StreamOptions

FORMATS = {"gptq": ("gptq:int4", "int8"), "awq": ("awq:int4",)}
"""Per algorithm."""


@pytest.fixture(scope="module", params=["dense", "experts"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    more = EXPERTS if request.param == "experts" else {}
    return tiny_model(folder, demo_folder, intermediate_size=64, **more)


def quantized(
    model: Path, out: Path, devices: tuple[str, ...], options: SolveOptions
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors that a run writes, importance matrix included, by file name."""
    source = describe(str(model))
    schemes = list(map(tiny_scheme, FORMATS[options.algorithm]))
    with Checkpoint(model) as checkpoint:
        driver.quantize_folders(
            source,
            checkpoint,
            driver.folder_jobs(source, checkpoint, schemes, out, options),
            random_rows(source.config.vocab_size),
            driver.RunOptions(stream=StreamOptions(devices)),
            importance=out / ".importance-",
        )
    return {
        str(path.relative_to(out)): load_file(path) for path in sorted(out.rglob("*.safetensors"))
    }


@pytest.mark.usefixtures("products_of_torch")
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
