"""Notes name their layer, and tell where a run went on with other arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import random_rows, tiny_model

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import CheckpointError
from qwen3q.models.source import describe
from qwen3q.plan.schemes import Override, Scheme, parse_scheme
from qwen3q.quantize import arithmetic
from qwen3q.quantize import folder as driver
from qwen3q.quantize.layer_notes import layers_in_words
from qwen3q.quantize.solve import SolveOptions

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    return tiny_model(folder, demo_folder, num_hidden_layers=LAYERS)


def make(model: Path, out: Path, scheme: Scheme, *, resume: bool = False) -> Path:
    source = describe(str(model))
    with Checkpoint(model) as checkpoint:
        jobs = driver.folder_jobs(source, checkpoint, [scheme], out, SolveOptions(sweeps=0))
        rows = random_rows(source.config.vocab_size)
        run = driver.RunOptions(resume=resume)
        return driver.quantize_folders(source, checkpoint, jobs, rows, run).folders[0]


def notes_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "report.json").read_text())["notes"])


def test_a_note_on_scales_names_the_layer_whose_norm_holds_them(
    model: Path, tmp_path: Path
) -> None:
    """With q_proj of layer 1 in float, nothing can be folded into the norm ahead of it."""
    kept = Override("model.layers.1.self_attn.q_proj", keep_float=True)
    made = make(model, tmp_path, parse_scheme("gptq:int4", group_size=32, overrides=(kept,)))
    before, after = load_file(model / "model.safetensors"), load_file(made / "model.safetensors")
    norms = [f"model.layers.{layer}.input_layernorm.weight" for layer in range(LAYERS)]
    changed = {
        layer for layer, norm in enumerate(norms) if not torch.equal(before[norm], after[norm])
    }
    assert {0} <= changed <= {0, 2, 3}
    told = [note.split(": scales folded ahead of ") for note in notes_of(made)]
    assert {place for place, linears in told if "q_proj" in linears.split(", ")} == {
        f"model.layers.{layer}" for layer in changed
    }
    card = (made / "README.md").read_text()
    assert "- layers 0, 2 to 3: scales folded ahead of q_proj, k_proj, v_proj, o_proj, " in card
    assert "- layer 1: scales folded ahead of o_proj, " in card


def test_layers_that_another_machine_made_are_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    solve = driver.solve_layer

    def cut(layer, *rest):
        if layer.index == 2:
            raise CheckpointError("cut")
        return solve(layer, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "solve_layer", cut)
        with pytest.raises(CheckpointError, match="cut"):
            make(model, tmp_path / "moved", scheme)
    here = arithmetic.arithmetic_name("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(arithmetic, "_fast_bfloat16", lambda: not here.endswith("bfloat16 products"))
        there = arithmetic.arithmetic_name("cpu")
        moved = make(model, tmp_path / "moved", scheme, resume=True)
    [note, *others] = notes_of(moved)
    assert f"layers 0 to 1 on {here}; layers 2 to 3 on {there}." in note
    assert note in (moved / "README.md").read_text()
    assert others == notes_of(make(model, tmp_path / "stayed", scheme))


def test_the_name_of_the_arithmetic_tells_what_the_processor_has() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("this system has no /proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "").split()
    name = arithmetic.arithmetic_name("cpu")
    assert name.endswith("bfloat16 products") == bool({"avx512_bf16", "amx_tile"} & {*flags})
    assert ("AVX512" in name) == ("avx512f" in flags)


@pytest.mark.parametrize(
    ("layers", "words"),
    [([3], "layer 3"), ([0, 1, 2], "layers 0 to 2"), ([4, 0, 1, 7], "layers 0 to 1, 4, 7")],
)
def test_layers_in_words(layers: list[int], words: str) -> None:
    assert layers_in_words(layers) == words
