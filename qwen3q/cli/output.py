"""What verbs print with: one console for people, JSON for scripts, bars on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.control_characters import CONTROL, without_controls
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    from rich.console import Console

_FILE_WIDTH = 240

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts.")]


def stdout_console() -> Console:
    """Where results go."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """Where notes, warnings and bars go, so that pipes stay clean."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    """Brackets and colons are what they are, as names of files hold some, and control characters
    are not let through; a table that goes into a file or a pipe is not folded."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(without_controls(text), **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; to ``main`` it is no failure

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return PlainConsole(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=not terminal,
        width=None if terminal or os.environ.get("COLUMNS") else _FILE_WIDTH,
    )


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout, with control characters escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    _write(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def stdout_width() -> int | None:
    """Letters of a line of results; None in a file or a pipe, which has no width."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return shutil.get_terminal_size().columns


def print_lines(lines: Sequence[str]) -> None:
    """Lines that no terminal's width folds, on stdout."""
    _write(without_controls("\n".join(lines) + "\n"))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise BrokenPipeError from None  # without an errno, over which click would exit with 1


def note(message: str) -> None:
    """A remark for people, on stderr."""
    stderr_console().print(message)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[ProgressFn]:
    """A bar per label with time left; nothing when stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield silent
        return
    from rich.progress import Progress

    from qwen3q.cli.bars import COLUMNS, Bars

    with Progress(*COLUMNS, console=stderr_console(), transient=True) as progress:
        yield Bars(progress)


def format_bytes(nbytes: float) -> str:
    """``5.03 GB``: decimal units, as the Hub and disks count."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes:.0f} B"
