"""Threads that take portions of one layer's work side by side, one processor core each.

Torch's own threads share out single operations, and wait for each other after every one. Those
of a calibration pass are short, so whole portions are shared out instead. Each runs on a single
thread: what it computes is the same however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Team:
    """A fixed number of threads. Use as a context manager.

    Attributes:
        size: 1 does everything in the calling thread.
        alone: the calling thread, too, computes on one core, without torch's own threads.
    """

    def __init__(self, size: int, *, alone: bool = False) -> None:
        self.size = size
        self.alone = alone
        self._before = 0
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Team:
        self._before = torch.get_num_threads()
        own = 1 if self.alone else self._before
        if self.size > 1:
            self._pool = ThreadPoolExecutor(self.size, "layer")
            all_here = Barrier(self.size)

            def prepare(_: int) -> None:
                torch.get_num_threads()  # a thread's first call takes over the shared default
                torch.set_num_threads(1)
                all_here.wait()

            list(self._pool.map(prepare, range(self.size)))
        torch.set_num_threads(own)  # the default was set along with each thread's number
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._before)

    def map(self, run: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Results in the order of ``items``; all are done when this returns."""
        if self._pool is None:
            return [run(item) for item in items]
        return list(self._pool.map(run, items))


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Within: torch, and every team, computes on ``count`` cores at most; None: no change."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
