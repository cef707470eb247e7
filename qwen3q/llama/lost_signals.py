"""Ctrl-C that reaches Python inside a callback of llama.cpp.

Python runs a signal's handler before the next bytecode. Where that is a callback's (llama.cpp logs
hundreds of lines while it loads a model), ctypes can't pass on what the handler raises, and drops
it. The signal is then sent again, until it arrives between two calls.
"""

from __future__ import annotations

import signal
import sys
import threading

_AGAIN_SECONDS = 0.02


def send_lost_signals_again() -> None:
    """From now on, ends that a callback dropped are asked for again."""
    usual = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        number = _sent(lost.exc_value)
        if number is None:
            usual(lost)
            return
        again = threading.Timer(_AGAIN_SECONDS, signal.raise_signal, [number])
        again.daemon = True
        again.start()

    sys.unraisablehook = hook


def _sent(raised: BaseException | None) -> int | None:
    """The signal whose handler raised it, by Python's and the shell's conventions; else None."""
    if isinstance(raised, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(raised, SystemExit) and isinstance(raised.code, int) and raised.code > 128:
        return raised.code - 128
    return None
