"""Every failure a user can cause: one sentence, the next step, an exit code.

The command line prints ``message`` and ``hint`` and exits with ``exit_code``;
nothing below it prints or exits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFETCH = "The download may be incomplete; fetch the file again."
REFETCH_MODEL = "The download may be incomplete; fetch the model again."
DAMAGED_MODEL = (
    "Fetch the model again and compare its checksums; if they are the publisher's, the model "
    "itself is broken."
)
UNREADABLE = "Check that it is a file and that you may read it."


class Qwen3qError(Exception):
    """A failure with a sentence for the user.

    Attributes:
        message: what is wrong, with the offending name and value.
        hint: the next step, or an empty string.
        exit_code: what the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(Qwen3qError):
    """An argument that can't be used."""

    exit_code = 2


class SourceError(Qwen3qError):
    """A model that can't be found or downloaded."""


class ModelError(Qwen3qError):
    """A config or tensor list that is no Qwen3."""


class CheckpointError(Qwen3qError):
    """A weights file that is broken, unsafe or not finite."""


class DiskError(Qwen3qError):
    """Too little room, or a target that can't be written."""


class LlamaError(Qwen3qError):
    """llama.cpp refused; the message carries its own reason."""


class OutOfMemoryError(Qwen3qError):
    """Memory was full, of the machine or of a GPU."""


class Interrupted(Qwen3qError):
    """Ctrl-C or a signal; the hint says how to go on, where something is left to go on with."""

    exit_code = 130

    def __init__(self, hint: str = "", stop: BaseException | None = None) -> None:
        """Takes the exit code of ``stop``, if that is a ``SystemExit`` with one."""
        super().__init__("Interrupted.", hint)
        if isinstance(stop, SystemExit) and isinstance(stop.code, int):
            self.exit_code = stop.code


class MissingPackageError(Qwen3qError):
    """An optional package that this verb needs is not installed."""


@contextmanager
def telling(kept: Callable[[], str]) -> Iterator[None]:
    """What ends the body early, Ctrl-C and signals included, is told with what is kept of the work.

    Args:
        kept: asked when that happens; empty if nothing is.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        raise Interrupted(kept(), stop) from None
    except Qwen3qError as error:
        error.hint = "\n".join(filter(None, (error.hint, kept())))
        raise


def memory_error(error: BaseException) -> OutOfMemoryError | None:
    """What to tell of Python's or torch's word that memory is full; None of any other error.

    torch has a class of its own for CUDA alone; of processors and of Apple's GPUs it is a
    ``RuntimeError`` that says so.
    """
    text = str(error).partition("\n")[0]
    if isinstance(error, MemoryError):
        where, said = "this machine", text
    elif not isinstance(error, RuntimeError):
        return None
    elif "CUDA out of memory" in text or "MPS backend out of memory" in text:
        where, said = "the GPU", text.partition(". ")[2].partition(". ")[0]
    elif "DefaultCPUAllocator" in text:
        where, said = "this machine", text.partition("you ")[2].partition(". ")[0]
    else:
        return None
    return OutOfMemoryError(
        f"The memory of {where} is full{f' ({said})' if said else ''}.",
        "End what else uses it, or ask for less: --device cpu, fewer or shorter samples, a shorter "
        "context. `qwen3q estimate` says what fits; --resume continues what was begun.",
    )
