"""How a long library call tells how far it is. The library reports; only the CLI draws."""

from __future__ import annotations

from collections.abc import Callable

ProgressFn = Callable[[int, int, str], None]
"""Called with (done, total, label); ``done == total`` ends that label's bar."""


def silent(done: int, total: int, label: str) -> None:
    """Reports to nobody."""
