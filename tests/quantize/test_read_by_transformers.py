"""Folders load in transformers with no key missing or left over, and answer as our reader says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.formats.reader import QuantizedFolder
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.folder import folder_jobs, quantize_folders

TEXT = (
    "It was a bright morning, and the old man had already walked to the river before anyone else "
    "in the house was awake. He sat down upon a stone, took off his hat, and looked for a long "
    "time at the water, which was brown and quick after the rain of the night. "
)


@pytest.fixture(scope="module")
def tokens(demo_folder: Path) -> torch.Tensor:
    ids = Tokenizer.from_file(str(demo_folder / "tokenizer.json")).encode(TEXT * 3).ids
    return torch.tensor([ids])


@pytest.fixture(scope="module")
def made(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    schemes = [parse_scheme(name) for name in ("bnb:nf4", "bnb:int8", "bf16")]
    with Checkpoint(demo_folder) as checkpoint:
        source = describe("demo")
        jobs = folder_jobs(source, checkpoint, schemes, out)
        quantize_folders(source, checkpoint, jobs)
    return out


def nll(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(tokens, labels=tokens).loss)


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert {key: value for key, value in info.items() if value} == {}
    return model.eval()


@pytest.mark.parametrize("suffix", ["bnb-nf4", "bnb-int8", "BF16"])
def test_prompt_nll(suffix: str, made: Path, demo_folder: Path, tokens: torch.Tensor) -> None:
    folder = made / f"Qwen3-demo-{suffix}"
    theirs = nll(load(folder, torch.bfloat16), tokens)
    reference = load(demo_folder, torch.float32)
    plain = nll(reference, tokens)
    state = reference.state_dict()
    with QuantizedFolder(folder) as stored, torch.no_grad():
        for name in stored.weights:
            state[name].copy_(stored.weight(name))
    ours = nll(reference, tokens)
    assert theirs == pytest.approx(ours, rel=2e-3)
    if suffix == "bnb-nf4":
        assert abs(ours - plain) > 2e-3 * plain
