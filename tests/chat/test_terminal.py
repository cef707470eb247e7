"""The terminal: commands, what is printed, and Ctrl-C in a real pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from qwen3q.chat.session import Piece
from qwen3q.chat.terminal import AnswerPrinter, Terminal, interrupt_sets_flag

DIM, RESET = "\x1b[2m", "\x1b[0m"


def talk(session, lines: list[str]) -> str:
    """What a terminal shows when ``lines`` are typed."""
    typed: Iterator[str] = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    Terminal(session, console, read_line).run()
    return out.getvalue()


def test_a_conversation(make_session, tmp_path):
    path = tmp_path / "talk.md"
    session = make_session()
    shown = talk(
        session,
        ["What is 413 + 389?", "/no_think", "Count from 5 to 9.", "^C", f"/save {path}", "/exit",
         "never read"],
    )  # fmt: skip
    assert "carry 0. So the sum is 802.\n\n413 + 389 = 802.\n" in shown
    assert "Thinking is off." in shown
    assert "\n5, 6, 7, 8, 9.\n" in shown
    assert "Ctrl-D or /exit leaves." in shown
    assert "generated at" in shown
    assert path.read_text() == (
        "## user\n\nWhat is 413 + 389?\n\n## assistant\n\n413 + 389 = 802.\n\n"
        "## user\n\nCount from 5 to 9.\n\n## assistant\n\n5, 6, 7, 8, 9.\n"
    )
    assert "never read" not in str(session.messages)


def test_commands_and_mistakes(make_session, tmp_path):
    exists = tmp_path / "exists"
    exists.write_text("precious")
    shown = talk(
        make_session(thinking=False),
        ["/foo", "/save", f"/save {exists}", f"/save {exists}/such", "", "again " * 1500,
         "/think", "/help", "/reset", f"/save {tmp_path}/empty.json"],
    )  # fmt: skip
    assert "There is no command /foo." in shown
    assert "/save needs the name of a file." in shown
    assert "exists already" in shown
    assert "Can't write" in shown
    assert "but the context holds 1024" in shown
    assert "Thinking is on." in shown
    assert exists.read_text() == "precious"
    assert json.loads((tmp_path / "empty.json").read_text()) == {"messages": []}
    assert {path.name for path in tmp_path.iterdir()} == {"exists", "empty.json"}


def test_thinking_is_dim_and_control_characters_stay_out():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, highlight=False, no_color=False)
    printer = AnswerPrinter(console, show_thinking=True)
    printer(Piece("hm \x1b]0;title\x07", True))
    printer(Piece("[bold]yes\x1b[2J\r\n", False))
    printer.end()
    assert out.getvalue() == f"{DIM}hm �]0;title�{RESET}\n\n[bold]yes�[2J�\n"


def test_hidden_thinking_prints_only_the_answer():
    out = io.StringIO()
    printer = AnswerPrinter(Console(file=out), show_thinking=False)
    printer(Piece("hm", True))
    printer(Piece("yes", False))
    printer.end()
    assert out.getvalue() == "yes\n"


def test_an_interrupt_sets_the_flag_and_the_handler_returns():
    before = signal.getsignal(signal.SIGINT)
    with interrupt_sets_flag() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
    assert signal.getsignal(signal.SIGINT) is before


class Pty:
    """``qwen3q chat`` in a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
            command = [sys.executable, "-m", "qwen3q", "chat", *arguments]
            os.execve(sys.executable, command, env)
        self._unread = ""

    def until(self, text: str, seconds: float = 180) -> str:
        """What is shown up to and including ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self._unread:
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; instead: {self._unread!r}"
            self._unread += os.read(self.fd, 4096).decode(errors="replace")
        shown, _, self._unread = self._unread.partition(text)
        return shown + text

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_ctrl_c_stops_the_answer_and_not_the_program(demo_gguf):
    # a model this small, greedy and paid for repeating itself, writes until the context is full
    endless = ("--temperature", "0", "--presence-penalty", "-2")
    terminal = Pty(str(demo_gguf), "--no-think", *endless, "--threads", "1")
    assert "not thinking, 2048 tokens of context" in terminal.until(">>> ")
    terminal.type("Tell me a story about the sea, the captain and the whale.\r")
    terminal.until("captain and the whale.\r\n")
    terminal.until(" ")
    terminal.type("\x03")
    assert "Stopped." in terminal.until(">>> ")
    terminal.type("/reset\r")
    assert "starts over" in terminal.until(">>> ")
    terminal.type("Count from 5 to 9.\r")
    assert "generated" in terminal.until(">>> ")
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_thinking_is_dim_on_a_terminal(demo_gguf):
    terminal = Pty(str(demo_gguf), "--temperature", "0", "--threads", "1")
    assert "Qwen advises against greedy decoding" in terminal.until(">>> ")
    terminal.type("What is 413 + 389?\r")
    shown = terminal.until(">>> ")
    assert f"{DIM} carry{RESET}" in shown
    assert "\r\n\r\n413 + 389 = 802.\r\n" in shown
    terminal.type("\x04")
    assert terminal.exit_code() == 0
