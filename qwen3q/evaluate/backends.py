"""Running a model, whatever runs it: the protocol that every measurement is written against."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qwen3q.devices import best_device, check_device
from qwen3q.errors import MissingPackageError, UsageError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.sampling import FinishedFn, GrownFn, Prompt, ignore, unwatched
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import calm_openmp, default_threads


class BackendKind(StrEnum):
    """What runs a model. AUTO: llama.cpp for GGUF files, torch for folders."""

    AUTO = "auto"
    LLAMA = "llama"
    TORCH = "torch"


class LogitRows(NamedTuple):
    """Logits of some scored positions.

    Attributes:
        start: number of the first row, counted through all chunks in order.
        values: float32 ``[rows, vocabulary]``, valid until the next are asked for.
    """

    start: int
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How models are run.

    Attributes:
        threads: None for the physical cores.
        gpu_layers: llama.cpp's layers on the GPU; negative for all.
        device: torch's device; None for the fastest there is.
        yarn: extend the context by this factor (YaRN); None for the model's own RoPE.

    Raises:
        UsageError: a device that is none or not here.
        MissingPackageError: a device needs torch, which is not installed.
    """

    kind: BackendKind = BackendKind.AUTO
    threads: int | None = None
    gpu_layers: int = -1
    device: str | None = None
    yarn: float | None = None

    def __post_init__(self) -> None:
        if self.device is not None:
            check_device(self.device)

    @property
    def thread_count(self) -> int:
        return self.threads or default_threads()


class Backend(Protocol):
    """A loaded model. Close it, or use it in a ``with``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What ran it: engine, version, device, arithmetic."""

    @property
    def vocab_size(self) -> int:
        """Width of a row of logits."""

    def logits(
        self, chunks: NDArray[np.int32], first: int, progress: ProgressFn = silent
    ) -> Iterator[LogitRows]:
        """Logits at positions ``first .. context - 2`` of each chunk, in order.

        Args:
            chunks: int32 ``[chunks, context]``; each is read by itself.
        """

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        stop_tokens: frozenset[int],
        finished: FinishedFn = ignore,
        grown: GrownFn = unwatched,
    ) -> list[list[int]]:
        """Each prompt's continuation; a token of ``stop_tokens`` ends it and is not returned.

        Several are made side by side where that is faster. Backends that see logits draw the same
        random numbers for the same seed; a server is asked for it, as far as it has one. In float32
        the same prompts give the same tokens again. Where inputs are rounded (W8A8, GGUF), or keys
        and values are, what is run beside turns a rounding now and then, and with it an answer.

        Args:
            finished: told of each continuation as soon as it is complete.
            grown: told how far one is that goes on; of a server, by the pace of others.
        """

    def close(self) -> None:
        """Frees the model."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def check_generation(artefact: Artefact, options: BackendOptions) -> None:
    """Refuses a model that torch can't answer with here, before anything is measured.

    Raises:
        OutOfMemoryError: its weights do not fit, even as they are stored.
    """
    if artefact.endpoint is None and _kind_of(artefact, options) is BackendKind.TORCH:
        import torch

        from qwen3q.evaluate.residence import residence

        residence(artefact, torch.device(options.device or best_device()))


def _kind_of(artefact: Artefact, options: BackendOptions) -> BackendKind:
    if options.kind is BackendKind.AUTO:
        return BackendKind.LLAMA if artefact.is_gguf else BackendKind.TORCH
    return options.kind


def open_backend(artefact: Artefact, options: BackendOptions, context: int) -> Backend:
    """Loads ``artefact`` for up to ``context`` tokens at a time; of an endpoint, asks for them.

    Where torch is not loaded yet, its threads are told not to spin (``calm_openmp``).

    Raises:
        EndpointError: the server takes fewer tokens.
        MissingPackageError: torch or llama-cpp-python is needed and not installed.
        UsageError: YaRN for a model that has it, out of range, or for an endpoint.
        Qwen3qError: the model is broken, or llama.cpp refuses it.
    """
    if artefact.endpoint is not None:
        if options.yarn is not None:
            raise UsageError(f"{artefact.name} was started with the RoPE it has.")
        from qwen3q.evaluate.endpoint_backend import EndpointBackend

        return EndpointBackend(artefact, context)
    if _kind_of(artefact, options) is BackendKind.LLAMA:
        if not artefact.is_gguf:
            raise MissingPackageError(
                f"llama.cpp can't run the folder {artefact.path}.",
                "Use --backend torch, or name a GGUF type, such as MODEL:BF16.",
            )
        from qwen3q.evaluate.llama_backend import LlamaBackend

        return LlamaBackend(artefact, options, context)
    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError(
            f"{artefact.name} is run by torch, which is not installed.",
            "pip install 'qwen3q[torch]'",
        )
    calm_openmp()
    from qwen3q.evaluate.torch_backend import TorchBackend

    return TorchBackend(artefact, options)
