"""Text of other people's files, made fit for a terminal, which obeys control characters."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All of them but the tab and the end of a line."""


def without_controls(text: str) -> str:
    """``text`` with a replacement character for each."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
