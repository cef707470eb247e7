"""A half-made folder takes only what was planned for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.torch_io import read_tensor
from qwen3q.errors import CheckpointError
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.folder import folder_jobs
from qwen3q.quantize.folder_work import FolderWork
from qwen3q.quantize.journal import OUTSIDE
from qwen3q.quantize.solve import SolvedLayer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "Tiny", demo_folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t | {"more": torch.ones(1)}, "tensor more is not in the plan"),
        (lambda t: dict(list(t.items())[1:]), "tensor model.embed_tokens.weight was not made"),
        (lambda t: {n: v.float() for n, v in t.items()}, "came out as float32 .*, planned was bf"),
        (lambda t: {n: v[:-1] for n, v in t.items()}, "came out as bfloat16 "),
    ],
)
def test_a_unit_that_is_not_as_planned_is_not_noted(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    says: str,
    model: Path,
    tmp_path: Path,
) -> None:
    with Checkpoint(model) as checkpoint:
        schemes = [parse_scheme("bf16")]
        [job] = folder_jobs(describe(str(model)), checkpoint, schemes, tmp_path)
        with FolderWork(job, {"model": "x"}) as work:
            names = [spec.name for spec in work.sources(OUTSIDE)]
            tensors = {name: read_tensor(checkpoint, name) for name in names}
            with pytest.raises(CheckpointError, match=says):
                work.finish_unit(OUTSIDE, change(tensors).items(), ())
            assert not work.is_done(OUTSIDE)
            name = "model.layers.0.input_layernorm.weight"
            overflowed = SolvedLayer({}, {name: torch.tensor([1.0, torch.inf])}, ())
            with pytest.raises(CheckpointError, match=f"{name} became NaN or Inf"):
                work.packed(overflowed, 0, checkpoint)
            work.finish_unit(OUTSIDE, tensors.items(), ())
            assert work.is_done(OUTSIDE)
