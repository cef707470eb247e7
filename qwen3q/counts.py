"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """``1 chunk``, ``2,048 chunks``: a count before its noun, which is given in the singular."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
