"""The ``qwen3q`` command: a table of verbs, each imported when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from inspect import cleandoc

import typer

from qwen3q import __version__
from qwen3q.control_characters import without_controls
from qwen3q.errors import DiskError, Interrupted, Qwen3qError, memory_error
from qwen3q.threads import calm_openmp

VERBS = {
    "models": "The Qwen3 releases: sizes, shapes and names.",
    "inspect": "What a model, folder or file holds.",
    "estimate": "What a model takes in memory and how fast it will be.",
    "fit": "The best models that given GPUs hold.",
    "download": "Fetch a model from the Hub.",
    "quantize": "Turn a model into smaller formats.",
    "verify": "Hold a quantized folder against its plan and its manifest.",
    "eval": "Measure what a quantization cost.",
    "report": "Reports of several evaluations in one.",
    "chat": "Talk with a model in the terminal.",
    "doctor": "What works on this machine, and how to get what does not.",
    "demo": "The whole path on the embedded demo model.",
}
"""Verb and summary; the code is ``qwen3q.cli.<verb>.register(app)``."""

_SHOWN_OF_A_NAME = 80


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command line for ``arguments``.

    Only the verb they call is imported, so ``--help`` stays fast; shell completion gets them all.
    """
    app = typer.Typer(
        name="qwen3q",
        help="Run Qwen3 on the hardware you own.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    called = next((word for word in arguments if not word.startswith("-")), None)
    completing = any(name.startswith("_QWEN3Q_COMPLETE") for name in os.environ)
    for verb, summary in VERBS.items():
        if verb == called or completing:
            importlib.import_module(f"qwen3q.cli.{verb}").register(app)
        else:
            app.command(verb, help=summary)(_other_verb)
    _let_help_flow(app)
    return app


def _let_help_flow(app: typer.Typer) -> None:
    """Joins the lines of each help's paragraphs, so that the terminal's width breaks them alone."""
    for command in app.registered_commands:
        doc = command.help or cleandoc(getattr(command.callback, "__doc__", None) or "")
        command.help = "\n\n".join(" ".join(part.split()) for part in doc.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _let_help_flow(group.typer_instance)


def main() -> None:
    """Entry point: runs the command line and turns failures into a sentence and an exit code."""
    calm_openmp()
    _prepare_streams()
    stopped = _exit_on_signals()
    try:
        build_app(sys.argv[1:])()
        sys.stdout.flush()
    except Qwen3qError as error:
        if isinstance(error, Interrupted):
            _let_end()
        _explain(error)
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        full = memory_error(error)
        if full is None:
            raise
        _explain(full)
        sys.exit(full.exit_code)
    except KeyboardInterrupt:
        _let_end()
        _say_interrupted()
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        _drop_output()
        sys.exit(0)
    except OSError as error:
        explained = _of_a_name(error) or _of_the_output(error)
        if explained is None:
            raise
        _explain(explained)
        sys.exit(explained.exit_code)
    except SystemExit as done:
        if done.code in stopped:
            _let_end()
            _say_interrupted()
        raise


def _of_a_name(error: OSError) -> Qwen3qError | None:
    """What the system says of a file or folder, where no verb has more to say."""
    if error.filename is None:
        return None
    name = os.fsdecode(error.filename) if not isinstance(error.filename, int) else "a file"
    if len(name) > _SHOWN_OF_A_NAME:
        name = f"{name[:_SHOWN_OF_A_NAME]}..."
    return Qwen3qError(f"Can't use {name}: {error.strerror}.")


def _of_the_output(error: OSError) -> DiskError | None:
    """The disk that what is printed goes to is full."""
    if error.errno != errno.ENOSPC:
        return None
    _drop_output()
    return DiskError(f"Can't write the output: {error.strerror}.")


def _exit_on_signals() -> set[int]:
    """Lets SIGTERM and a closed terminal end a run as Ctrl-C does, so that what it was writing is
    removed; gives the exit codes of runs that were ended. What is ignored (``nohup``) stays so."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    for number in numbers:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    return {Interrupted.exit_code, *(128 + number for number in numbers)}


def _prepare_streams() -> None:
    """Closed ones swallow what is printed; what an encoding lacks is printed as ``?``."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is still to be printed can't be: python would try once more at its end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _let_end() -> None:
    """Another Ctrl-C would only break into what Python does at its end, with a traceback."""
    with suppress(ValueError):  # no main thread, so no Ctrl-C either
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say_interrupted() -> None:
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"{Interrupted().message}\n")


def _explain(error: Qwen3qError) -> None:
    with suppress(OSError):
        sys.stderr.write(without_controls(f"qwen3q: {error.message}\n"))
        if error.hint:
            sys.stderr.write(without_controls(f"{error.hint}\n"))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwen3q {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def _other_verb() -> None:
    """Stands in for a verb that this call does not run."""
