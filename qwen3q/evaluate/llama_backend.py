"""GGUF files through llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions, LogitRows
from qwen3q.evaluate.llama_slots import LlamaSlots, open_slots
from qwen3q.evaluate.perplexity import scored_logits
from qwen3q.evaluate.sampling import FinishedFn, GrownFn, Prompt, ignore, unwatched
from qwen3q.evaluate.side_by_side import continue_side_by_side
from qwen3q.formats.gguf_file import read_header
from qwen3q.llama.capi import VERSION, lib
from qwen3q.llama.context import ContextOptions
from qwen3q.llama.devices import gpu_devices
from qwen3q.llama.model import LlamaModel, LoadOptions
from qwen3q.models.yarn import already_extended
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import model_threads


class LlamaBackend(Closing):
    """A GGUF file in llama.cpp, as ``llama-perplexity`` runs it: batches of 512 tokens."""

    def __init__(self, artefact: Artefact, options: BackendOptions, context: int) -> None:
        self.model = LlamaModel(artefact.path, LoadOptions(gpu_layers=options.gpu_layers))
        if options.yarn is not None:
            _require_no_yarn(artefact)
        threads = model_threads(options.threads, self.model.hidden_size)
        self._options = partial(ContextOptions, threads=threads, yarn=options.yarn)
        self._context = context
        self._slots: LlamaSlots | None = None
        self.facts: Mapping[str, Any] = {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {VERSION}",
            "system": lib.llama_print_system_info().decode().strip(),
            "threads": threads,
            "gpu_layers": options.gpu_layers if gpu_devices() else 0,
        }
        if options.yarn is not None:
            self.facts = {**self.facts, "yarn": options.yarn}

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def logits(
        self, chunks: NDArray[np.int32], first: int, progress: ProgressFn = silent
    ) -> Iterator[LogitRows]:
        options = self._options(context=chunks.shape[1])
        row = 0
        for *_, values in scored_logits(self.model, chunks, first, options, progress, "logits"):
            yield LogitRows(row, values)
            row += len(values)

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        stop_tokens: frozenset[int],
        finished: FinishedFn = ignore,
        grown: GrownFn = unwatched,
    ) -> list[list[int]]:
        if self._slots is None:
            options = self._options(context=self._context)
            self._slots = open_slots(self.model, options, len(prompts))
        return continue_side_by_side(self._slots, prompts, max_tokens, stop_tokens, finished, grown)

    def close(self) -> None:
        if self._slots is not None:
            self._slots.context.close()
            self._slots = None
        self.model.close()


def _require_no_yarn(artefact: Artefact) -> None:
    metadata = read_header(artefact.path).metadata
    kind = metadata.get(f"{metadata.get('general.architecture')}.rope.scaling.type")
    if kind == "yarn":
        raise already_extended(artefact.name)
