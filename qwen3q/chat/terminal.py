"""The conversation in a terminal: commands, streaming, and Ctrl-C that stops only the answer."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from qwen3q.chat.session import ChatSession, Piece, Turn
from qwen3q.control_characters import without_controls
from qwen3q.errors import Qwen3qError, UsageError
from qwen3q.files import write_text
from qwen3q.llama.generate import StopReason, Timings

PROMPT = ">>> "
HELP = """\
/think       answer after thinking
/no_think    answer at once
/reset       forget the conversation
/save FILE   write the conversation: Markdown, or JSON if FILE ends in .json
/help        this list
/exit        leave (also Ctrl-D)
Ctrl-C stops the answer."""
_STOPPED = {
    StopReason.LENGTH: "Stopped at --max-tokens.",
    StopReason.CONTEXT: "The context is full. /reset starts over; --context N gives more room.",
    StopReason.INTERRUPTED: "Stopped.",
}


class AnswerPrinter:
    """Prints pieces as they come, thinking dimmed; control characters can't reach the terminal."""

    def __init__(self, console: Console, *, show_thinking: bool) -> None:
        self._console = console
        self._show_thinking = show_thinking
        self._last: Piece | None = None

    def __call__(self, piece: Piece) -> None:
        if piece.thinking and not self._show_thinking:
            return
        if self._last is not None and self._last.thinking and not piece.thinking:
            self._console.print("\n" if self._last.text.endswith("\n") else "\n\n", end="")
        self._last = piece
        text = Text(without_controls(piece.text))
        style = "dim" if piece.thinking else ""
        self._console.print(text, style=style, end="", soft_wrap=True)

    def end(self) -> None:
        """Ends the line."""
        if self._last is not None and not self._last.text.endswith("\n"):
            self._console.print()


class Terminal:
    """Reads lines, runs commands, shows answers."""

    def __init__(
        self, session: ChatSession, console: Console, read_line: Callable[[str], str] = input
    ) -> None:
        self._session = session
        self._console = console
        self._read_line = read_line

    def run(self) -> None:
        """Talks until /exit or the end of input."""
        with suppress(ImportError):
            import readline  # noqa: F401  line editing and history in input()
        while True:
            try:
                line = self._read_line(PROMPT).strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print("\nCtrl-D or /exit leaves.", style="dim")
                continue
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._answer(line)
            except Qwen3qError as error:
                self._say(error.message)
                if error.hint:
                    self._say(error.hint)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name == "/think":
            self._set_thinking(True)
        elif name == "/no_think":
            self._set_thinking(False)
        elif name == "/reset":
            self._session.reset()
            self._say("The conversation starts over.")
        elif name == "/save":
            path = save_conversation(self._session, argument.strip())
            self._say(f"Saved to {path}.")
        elif name == "/help":
            self._say(HELP)
        else:
            raise UsageError(f"There is no command {name}.", "/help lists them.")

    def _set_thinking(self, thinking: bool) -> None:
        self._session.thinking = thinking
        self._say(f"Thinking is {'on' if thinking else 'off'}.")

    def _answer(self, text: str) -> None:
        printer = AnswerPrinter(self._console, show_thinking=True)
        with interrupt_sets_flag() as interrupted:
            turn = self._session.ask(text, printer, interrupted)
        printer.end()
        note = stop_note(turn)
        self._say(f"{note} {timing_line(turn.timings)}".strip())

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)


@contextmanager
def interrupt_sets_flag() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside sets a flag instead of raising; yields the question whether it is set."""
    flag = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        flag.set()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def stop_note(turn: Turn) -> str:
    """A sentence on why the answer ended early, or nothing."""
    note = _STOPPED.get(turn.stop_reason, "")
    if note and not turn.kept:
        note += " There was no answer yet, so the question is forgotten."
    return note


def timing_line(timings: Timings) -> str:
    """``22 prompt tokens, 86 generated at 389 tokens/s``."""
    cached = f" ({timings.cached_tokens} cached)" if timings.cached_tokens else ""
    prompt = f"{timings.prompt_tokens} prompt tokens{cached}"
    if timings.prefill_tokens_per_second:
        prompt += f" at {timings.prefill_tokens_per_second:.0f}/s"
    answer = f"{timings.generated_tokens} generated"
    if timings.decode_tokens_per_second:
        answer += f" at {timings.decode_tokens_per_second:.1f}/s"
    return f"{prompt}, {answer}"


def save_conversation(session: ChatSession, name: str) -> Path:
    """Writes the history, which holds no thinking, to a new file.

    Raises:
        UsageError: no name, or the file exists.
        DiskError: it can't be written.
    """
    if not name:
        raise UsageError("/save needs the name of a file.", "For instance: /save talk.md")
    path = Path(name).expanduser()
    if path.exists():
        raise UsageError(f"{path} exists already.", "Give another name.")
    if path.suffix == ".json":
        text = json.dumps({"messages": session.messages}, indent=2, ensure_ascii=False) + "\n"
    else:
        text = "\n".join(f"## {m['role']}\n\n{m['content']}\n" for m in session.messages)
    write_text(path, text)
    return path
