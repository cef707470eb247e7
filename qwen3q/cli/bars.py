"""Progress bars with time left, for steps of milliseconds as of half an hour.

rich's own time left looks back over 30 seconds, so it never appears where one decoder layer takes
longer; and it starts anew whenever a total is corrected.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from math import ceil

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_UNKNOWN = "-:--:--"


class Bars:
    """A bar per label, as a ``ProgressFn``."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._labels: dict[str, tuple[TaskID, Pace]] = {}

    def __call__(self, done: int, total: int, label: str) -> None:
        now = self._progress.get_time()
        if label not in self._labels:
            task = self._progress.add_task(label, total=total, due=None)
            self._labels[label] = task, Pace(now, done)
        task, pace = self._labels[label]
        left = pace.seconds_left(now, done, total)
        due = None if left is None else now + left
        self._progress.update(task, completed=done, total=total, due=due)


class Pace:
    """How long what is left takes, at the pace of the later half of the time so far."""

    def __init__(self, now: float, done: int) -> None:
        self._began = now
        self._reports = deque([(now, done)])

    def seconds_left(self, now: float, done: int, total: int) -> float | None:
        """None as long as there is no pace."""
        self._reports.append((now, done))
        middle = (self._began + now) / 2
        while len(self._reports) > 2 and self._reports[1][0] <= middle:
            self._reports.popleft()
        since, before = self._reports[0]
        return (total - done) * (now - since) / (done - before) if done > before else None


class TimeLeft(ProgressColumn):
    """Counts down between reports; what is overdue is not known any more."""

    def render(self, task: Task) -> Text:
        return Text(self._time(task), style="progress.remaining")

    @staticmethod
    def _time(task: Task) -> str:
        if task.finished:
            return str(timedelta())
        due: float | None = task.fields["due"]
        seconds = 0 if due is None else ceil(due - task.get_time())
        return str(timedelta(seconds=seconds)) if seconds > 0 else _UNKNOWN


COLUMNS: tuple[ProgressColumn, ...] = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    TextColumn("{task.percentage:>3.0f}%"),
    TimeLeft(),
)
"""What stands in a line, from left to right."""
