"""Experts from the router to report.json: tokens for each, top-up, and a fallback by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3q.calibrate.rows import TokenRows
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.folder import folder_jobs, quantize_folders
from qwen3q.quantize.solve import SolveOptions
from tests.conftest import random_model

ROWS = torch.randint(0, 8192, (8, 32), generator=torch.Generator().manual_seed(6)).tolist()
LEAST = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A model whose router never sends a token to expert 3, quantized."""
    folder = random_model(
        tmp_path_factory.mktemp("experts") / "model",
        demo_folder,
        model_type="qwen3_moe",
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        norm_topk_prob=True,
    )
    tensors = load_file(folder / "model.safetensors")
    router = tensors["model.layers.0.mlp.gate.weight"]
    router[:3] *= 4
    router[3] = -router[:3].sum(0) * 8
    embedding = tensors["model.embed_tokens.weight"]
    embedding += 0.4 * router[:3].sum(0)
    save_file(tensors, folder / "model.safetensors")
    source = describe(str(folder))
    rows = TokenRows(tuple(map(tuple, ROWS)), {"name": "random", "tokens": 256})
    with Checkpoint(folder) as checkpoint:
        options = SolveOptions(min_expert_tokens=LEAST, sweeps=1)
        scheme = parse_scheme("gptq:int4", group_size=32)
        jobs = folder_jobs(source, checkpoint, [scheme], tmp_path_factory.mktemp("out"), options)
        return quantize_folders(source, checkpoint, jobs, rows).folders[0]


def test_the_report_counts_tokens_per_expert_and_names_the_fallback(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    counts = {int(expert): tokens for expert, tokens in report["expert_tokens"]["0"].items()}
    assert sum(counts.values()) == 2 * 256
    starved = {expert for expert, tokens in counts.items() if tokens * 4 < LEAST}
    assert 3 in starved
    assert len(starved) < 4
    rows = [row for row in report["linears"] if ".experts." in row["name"]]
    assert len(rows) == 12
    for row in rows:
        expert = int(row["name"].split(".experts.")[1].split(".")[0])
        assert row["tokens"] == counts[expert]
        assert row["tokens"] + row["forced_tokens"] == max(counts[expert], LEAST)
        says = f"only {counts[expert]} calibration tokens are routed to it"
        assert row["fallback"] == (says if expert in starved else "")
        assert row["algorithm"] == ("rtn" if expert in starved else "gptq")
    [note] = [note for note in report["notes"] if "topped up" in note]
    short = [str(expert) for expert, tokens in counts.items() if tokens < LEAST]
    assert note.endswith(f"topped up: {', '.join(short)}")


def test_the_card_tells_of_the_starved(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    counts = report["expert_tokens"]["0"]
    starved = sum(tokens * 4 < LEAST for tokens in counts.values())
    card = (made / "README.md").read_text()
    assert f"Calibration tokens per expert: {min(counts.values())} at the least" in card
    assert f"named in `report.json`: {starved} experts." in card
