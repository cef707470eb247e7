"""Threads that share out portions: order, one core each, errors, and nothing left behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

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
