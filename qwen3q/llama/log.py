"""llama.cpp's log, kept in memory so that a failure can carry llama.cpp's own reason."""

from __future__ import annotations

from collections import deque

ERROR = 4
CONTINUE = 5
_KEPT_LINES = 256
_WRAPPERS = ("error loading model: ", "failed to initialize the context: ")


class Log:
    """The last lines that llama.cpp logged, numbered from the first.

    ``line_count`` before a call, given to ``reason`` after it failed, bounds the search.
    """

    def __init__(self) -> None:
        self.line_count = 0
        self._lines: deque[tuple[int, int, str]] = deque(maxlen=_KEPT_LINES)

    def write(self, level: int, text: str) -> None:
        """Takes one call of ``ggml_log_callback``."""
        if level == CONTINUE:
            return
        self._lines.append((self.line_count, level, text.strip()))
        self.line_count += 1

    def reason(self, since: int) -> str:
        """The first error logged from line ``since`` on, without the C function's name."""
        for number, level, text in self._lines:
            if number >= since and level == ERROR and text:
                _, found, rest = text.partition(": ")
                reason = rest if found else text
                for wrapper in _WRAPPERS:
                    reason = reason.removeprefix(wrapper)
                return reason.rstrip(".")
        return "llama.cpp gave no reason"
