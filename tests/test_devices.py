"""Devices by name: what is no device, what is not here, and what is."""

from __future__ import annotations

import pytest
import torch

from qwen3q.devices import check_device
from qwen3q.errors import UsageError


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "", "cuda:1:2"])
def test_what_is_no_device_is_named(name):
    with pytest.raises(UsageError, match=f"'{name}' is no device"):
        check_device(name)


@pytest.mark.parametrize(
    ("name", "gpus", "sees"),
    [("cuda", 0, "no CUDA GPU"), ("cuda:1", 1, "1 CUDA GPU here"), ("cuda:7", 2, "2 CUDA GPUs")],
)
def test_a_gpu_that_is_not_here_is_refused(name, gpus, sees, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UsageError, match=f"{name}: torch sees {sees}"):
        check_device(name)


def test_what_is_here_passes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "mps", "cuda", "cuda:1"):
        check_device(name)


def test_an_apple_gpu_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no Apple GPU"):
        check_device("mps")
