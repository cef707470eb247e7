"""Shards written in place, read by the safetensors library, the same whatever the order."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.shards import DTYPES, lay_out_shards
from qwen3q.checkpoint.torch_io import dtype_name, read_tensor, tensor_bytes
from qwen3q.checkpoint.writer import ShardWriter, file_sha256
from qwen3q.errors import CheckpointError, DiskError


@dataclass(frozen=True)
class Tensor:
    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


def make_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {"odd": torch.arange(79, dtype=torch.uint8), "scalar": torch.tensor(7).byte()}
    for i, name in enumerate(n for n in DTYPES if n not in ("bool",)):
        data = torch.randn(3 + i, 8, generator=generator) * 10
        tensors[f"t{i}.{name}"] = data.to(getattr(torch, name))
    return tensors


def planned(tensors: dict[str, torch.Tensor]) -> list[Tensor]:
    return [Tensor(name, dtype_name(t), tuple(t.shape), t.nbytes) for name, t in tensors.items()]


@pytest.mark.parametrize("limit", [10**9, 300])
def test_written_in_any_order_read_by_safetensors(tmp_path: Path, limit: int) -> None:
    tensors = make_tensors()
    shards = lay_out_shards(planned(tensors), limit)
    sums = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        names = list(tensors)
        random.Random(seed).shuffle(names)
        with ShardWriter(folder, shards) as writer:
            for name in names:
                writer.write(name, tensor_bytes(tensors[name]))
            writer.sync()
        sums.append({p.name: file_sha256(p) for p in sorted(folder.iterdir())})
        read = {k: v for s in shards for k, v in load_file(folder / s.filename).items()}
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name].view(torch.uint8), tensor.view(torch.uint8)), name
        with Checkpoint(folder) as checkpoint:
            for name, tensor in tensors.items():
                ours = read_tensor(checkpoint, name)
                assert torch.equal(ours.view(torch.uint8), tensor.view(torch.uint8)), name
    assert sums[0] == sums[1]
    assert len(shards) == (1 if limit == 10**9 else len(sums[0]) - 1)


def test_opened_again_it_keeps_what_is_there(tmp_path: Path) -> None:
    tensors = make_tensors()
    shards = lay_out_shards(planned(tensors), 300)
    names = list(tensors)
    for half in (names[::2], names[1::2]):
        with ShardWriter(tmp_path, shards) as writer:
            for name in half:
                writer.write(name, tensor_bytes(tensors[name]))
            writer.sync()
    with Checkpoint(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            assert torch.equal(
                read_tensor(checkpoint, name).view(torch.uint8), tensor.view(torch.uint8)
            )


def test_another_layout_is_written_anew(tmp_path: Path) -> None:
    first, second = make_tensors(), {"x": torch.ones(4)}
    with ShardWriter(tmp_path, lay_out_shards(planned(first))) as writer:
        writer.write("odd", tensor_bytes(first["odd"]))
    with ShardWriter(tmp_path, lay_out_shards(planned(second))) as writer:
        writer.write("x", tensor_bytes(second["x"]))
        with pytest.raises(CheckpointError, match="odd is not in the plan"):
            writer.write("odd", tensor_bytes(first["odd"]))
    assert load_file(tmp_path / "model.safetensors").keys() == {"x"}


def test_a_disk_that_takes_no_more_is_told_and_nothing_stays_open(
    tmp_path: Path, small_files: None
) -> None:
    """The first shard fits, the second does not."""
    tensors = {"a": torch.ones(4), "b": torch.ones(1000)}
    shards = lay_out_shards(planned(tensors), 100)
    assert len(shards) == 2
    before = open_files()
    with pytest.raises(DiskError, match="Can't reserve"):
        ShardWriter(tmp_path, shards)
    assert open_files() == before


def test_a_tensor_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    tensor, (_, hard) = torch.ones(1000), resource.getrlimit(resource.RLIMIT_FSIZE)
    with ShardWriter(tmp_path, lay_out_shards(planned({"x": tensor}))) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(DiskError, match=r"Can't write tensor x: File too large\."):
                writer.write("x", tensor_bytes(tensor))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def open_files() -> int:
    """The lowest descriptor that is free."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_name_twice_is_refused() -> None:
    twice = planned({"x": torch.ones(1)}) * 2
    with pytest.raises(CheckpointError, match="x would be stored twice"):
        lay_out_shards(twice)
