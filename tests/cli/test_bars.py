"""Time left in progress bars, by a clock of the test's own."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from qwen3q.cli.bars import COLUMNS, Bars


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drawn(clock):
    """Bars and what stands behind the percentage of the first."""
    progress = Progress(
        *COLUMNS, console=Console(file=io.StringIO()), get_time=clock, auto_refresh=False
    )

    def time_left() -> str:
        return COLUMNS[-1](progress.tasks[0]).plain

    return Bars(progress), time_left


def test_layers_of_minutes_have_time_left_after_the_first(clock, drawn):
    report, time_left = drawn
    for layer in range(36):
        report(layer, 36, "layers")
        assert time_left() == ("-:--:--" if layer == 0 else str_of((36 - layer) * 240))
        clock.now += 240
    report(36, 36, "layers")
    assert time_left() == "0:00:00"


def test_it_counts_down_between_reports_and_is_unknown_when_overdue(clock, drawn):
    report, time_left = drawn
    report(0, 10, "layers")
    clock.now += 60
    report(1, 10, "layers")
    assert time_left() == "0:09:00"
    clock.now += 100
    assert time_left() == "0:07:20"
    clock.now += 441
    assert time_left() == "-:--:--"


def test_a_total_that_is_corrected_does_not_begin_anew(clock, drawn):
    report, time_left = drawn
    report(0, 1000, "replies")
    for step in range(1, 11):
        clock.now += 1
        report(10 * step, 1000 - 20 * step, "replies")
    assert time_left() == str_of((800 - 100) / 10)


def test_the_pace_is_that_of_the_later_half(clock, drawn):
    """As where a resumed run passes what is there already, and then works."""
    report, time_left = drawn
    for done in range(100):
        report(done, 200, "layers")
        clock.now += 0.01
    for done in range(100, 150):
        report(done, 200, "layers")
        clock.now += 30
    assert time_left() == str_of(51 * 30 - 30)


def test_what_was_there_at_the_first_report_was_not_this_runs(clock, drawn):
    report, time_left = drawn
    report(900, 1000, "download")
    clock.now += 10
    report(910, 1000, "download")
    assert time_left() == "0:01:30"


def str_of(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
