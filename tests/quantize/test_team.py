"""Threads that share out portions: order, one core each, errors, and nothing left behind."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_model

from qwen3q.models.source import describe
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize import arithmetic
from qwen3q.quantize.run import QuantizeOptions, predict_memory, quantize_targets
from qwen3q.quantize.team import Team


def test_results_come_in_order_from_threads_of_one_core_each() -> None:
    before = torch.get_num_threads()

    def run(item: int) -> tuple[int, int]:
        time.sleep(0.02 * (3 - item))
        return item, torch.get_num_threads()

    with Team(3) as team:
        assert team.map(run, range(3)) == [(0, 1), (1, 1), (2, 1)]
        assert torch.get_num_threads() == before
        with pytest.raises(ZeroDivisionError):
            team.map(lambda item: 1 // item, [1, 0, 2])
    assert torch.get_num_threads() == before


def test_the_caller_too_computes_on_one_core_if_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Team(2, alone=True) as team:
            assert torch.get_num_threads() == 1
            assert team.map(lambda _: torch.get_num_threads(), range(2)) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_one_thread_is_the_callers_own() -> None:
    with Team(1) as team:
        assert team.map(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]


def test_a_layer_runs_on_as_many_threads_as_asked_for(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "worthwhile_threads", lambda cores, width: cores)
    before = torch.get_num_threads()
    source = describe(str(tiny_model(tmp_path / "Tiny", demo_folder)))
    job = job_of(QuantizeRequest(("int4",), samples=8, length=32, group_size=32))
    predicted = []
    for threads in (1, 3):
        seen: set[int] = set()

        def count(done: int, total: int, what: str, seen: set[int] = seen) -> None:
            seen.add(sum(thread.name.startswith("layer") for thread in threading.enumerate()))

        options = QuantizeOptions(threads=threads)
        footprint = predict_memory(source, job, options)
        assert footprint
        predicted.append(footprint.total)
        quantize_targets(source, job, tmp_path / str(threads), options, progress=count)
        assert max(seen) == (threads if threads > 1 else 0)
    assert predicted[0] < predicted[1]
    assert torch.get_num_threads() == before
