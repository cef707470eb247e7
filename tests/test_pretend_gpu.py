"""The pretended GPUs that other tests rely on do refuse what a GPU refuses."""

from __future__ import annotations

import pytest
import torch

from eval.bench.pretend_gpu import pretend_gpus


def test_tensors_of_two_devices_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    here, there = torch.ones(3), torch.ones(3).to("cuda")
    elsewhere = torch.ones(3, device="cuda:1")
    assert [str(t.device) for t in (here, there, elsewhere)] == ["cpu", "cuda:0", "cuda:1"]
    for left, right in ((here, there), (there, here), (there, elsewhere)):
        with pytest.raises(RuntimeError, match="same device"):
            left + right
        with pytest.raises(RuntimeError, match="same device"):
            left += right
        with pytest.raises(RuntimeError, match="same device"):
            torch.stack([left, right])
    with pytest.raises(RuntimeError, match="same device"):
        here[torch.zeros(2, dtype=torch.long, device="cuda")]
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def test_what_torch_allows_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    there = torch.ones(3).to("cuda")
    assert str((there * torch.tensor(2.0)).device) == "cuda:0"
    assert str(there[torch.tensor([0, 1])].device) == "cuda:0"
    assert str(there.new_zeros(2).max(0).values.device) == "cuda:0"
    here = torch.zeros(3)
    here[:2] = there[:2] * 4
    assert here.tolist() == [4, 4, 0]


def test_moving_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    here = torch.ones(3)
    there = here.to("cuda")
    here[0] = 5
    back = there.cpu()
    there[1] = 7
    assert back.tolist() == [1, 1, 1]
    assert there.to("cuda:0") is there
    assert there.cpu().tolist() == [1, 7, 1]


def test_apple_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, "mps")
    there = torch.ones(3).to("mps")
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="float64"):
        there.sum(0, dtype=torch.float64)
