"""Activations in memory and in files hold the same numbers and leave nothing behind."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from qwen3q.errors import DiskError
from qwen3q.quantize import activations
from qwen3q.quantize.activations import ActivationStore


def test_what_is_written_is_read(tmp_path: Path) -> None:
    values = torch.randn(6, 5, 16)
    for memory in (1 << 20, 0):
        with ActivationStore(6, 5, memory, tmp_path) as store:
            made = store.new(16)
            assert len(list(tmp_path.rglob("*.raw"))) == (memory == 0)
            for start in range(0, 6, 4):
                made.write(slice(start, start + 4), values[start : start + 4])
            assert torch.equal(made.read(slice(0, 6)), values)
            tokens = torch.tensor([29, 0, 7])
            assert torch.equal(made.gather(tokens), values.flatten(0, 1)[tokens])
        assert list(tmp_path.iterdir()) == []


def test_memory_is_used_up_to_the_budget_and_again_when_given_back(tmp_path: Path) -> None:
    with ActivationStore(4, 8, 3 * 4 * 8 * 16 * 4, tmp_path) as store:

        def files() -> int:
            return len(list(tmp_path.rglob("*.raw")))

        made = [store.new(16) for _ in range(3)]
        assert files() == 0
        made.append(store.new(16))
        assert files() == 1
        made[0].free()
        made[3].free()
        store.new(16)
        assert files() == 0
        made[1].free()
        store.new(32, torch.bfloat16)
        assert files() == 0
        store.new(32, torch.bfloat16)
        assert files() == 1


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        activations.shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 1 << 20)
    )
    with ActivationStore(4, 8, 0, tmp_path) as store:
        with pytest.raises(DiskError, match="GB free"):
            store.new(16)
        assert not any(files for *_, files in os.walk(tmp_path))
