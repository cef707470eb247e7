"""How many threads, and how they wait."""

from __future__ import annotations

import os
import threading

import pytest

from qwen3q import threads


def test_no_more_threads_than_processors():
    assert 1 <= threads.default_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(("busy", "spins"), [(1e6, "0"), (0.0, "10000")])
def test_threads_spin_less_on_a_busy_machine(busy, spins, monkeypatch):
    monkeypatch.setattr(threads, "_busy_threads", lambda: busy)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    threads.calm_openmp()
    assert os.environ["GOMP_SPINCOUNT"] == spins
    monkeypatch.delenv("GOMP_SPINCOUNT")


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_the_users_own_settings_stay(name, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv(name, "5")
    before = dict(os.environ)
    threads.calm_openmp()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("stated", "busy"),
    [("3.10 2.00 1.00 2/345 99", 1), ("0.50 2.00 1.00 9/345 99", 0.5), ("8.00 2.00 1.00 4/9 9", 3)],
)
def test_threads_of_others_are_busy_if_they_were_and_are(stated, busy, monkeypatch):
    monkeypatch.setattr(threads.Path, "read_text", lambda _: stated)
    assert threads._busy_threads() == busy


@pytest.mark.parametrize(
    ("cores", "width", "seconds", "used"),
    [(4, 256, 1e-5, 4), (4, 256, 1e-3, 1), (4, 1024, 1e-3, 4), (1, 256, 1e-3, 1)],
)
def test_narrow_models_run_on_one_thread_where_threads_wait(
    cores, width, seconds, used, monkeypatch
):
    monkeypatch.setattr(threads, "hand_over_seconds", lambda: seconds)
    assert threads.worthwhile_threads(cores, width) == used


def test_measuring_a_hand_over_leaves_no_thread():
    threads.hand_over_seconds.cache_clear()
    before = threading.active_count()
    assert threads.hand_over_seconds() > 0
    assert threading.active_count() == before
