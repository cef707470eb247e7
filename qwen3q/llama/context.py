"""A llama.cpp context: settings, batches of tokens in, logits out, and what its KV cache keeps."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.errors import LlamaError, UsageError
from qwen3q.llama.capi import lib, log
from qwen3q.llama.model import LlamaModel
from qwen3q.models.yarn import yarn_base
from qwen3q.plan.gguf_types import GGML_TYPES
from qwen3q.threads import model_threads

KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
_ABORTED = 2
_NO_KV_SLOT = 1
_YARN = 2
_MAX_CONTEXT = 1 << 24
_MAX_SEQUENCES = 256

StopFn = Callable[[], bool]
"""Asked now and then; True ends the work."""


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """How a context is made.

    Attributes:
        context: tokens each sequence can hold (rounded up to 256 by llama.cpp).
        sequences: sequences decoded side by side.
        batch: tokens per ``decode``.
        ubatch: tokens computed at a time.
        outputs: rows of logits per ``decode``; 0 for one per token. 1 saves memory in generation.
        threads: for single tokens and for batches; None for the physical cores, or one where more
            would not help (``qwen3q.threads``).
        key_type, value_type: how the KV cache is stored, one of ``KV_TYPES``.
        flash_attention: None lets llama.cpp choose. A quantized value cache needs it.
        yarn: YaRN context extension by this factor; None for what the file says.
    """

    context: int = 4096
    sequences: int = 1
    batch: int = 2048
    ubatch: int = 512
    outputs: int = 0
    threads: int | None = None
    key_type: str = "F16"
    value_type: str = "F16"
    flash_attention: bool | None = None
    yarn: float | None = None


class LlamaContext(Closing):
    """One context over a model. Close it, or use it in a ``with``."""

    def __init__(self, model: LlamaModel, options: ContextOptions | None = None) -> None:
        """Allocates the KV cache and the compute buffers.

        Raises:
            UsageError: an option out of range.
            LlamaError: llama.cpp refuses; carries its reason.
        """
        options = options or ContextOptions()
        params = _params(options, model)
        since = log.line_count
        handle = lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise LlamaError(
                f"llama.cpp can't make a context of {options.context} tokens: {log.reason(since)}.",
                "Try a smaller --context or other cache types.",
            )
        self.handle = handle
        self.model = model
        self.size = int(lib.llama_n_ctx_seq(handle))
        self.batch_size = int(lib.llama_n_batch(handle))
        self.sequences = options.sequences
        self._memory = lib.llama_get_memory(handle)
        self._batch = _Batch(self.batch_size)
        self._most_outputs = options.outputs
        self._outputs = 0

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        *,
        sequences: NDArray[np.int32] | int = 0,
        outputs: NDArray[np.bool_] | bool = False,
        stop: StopFn | None = None,
    ) -> bool:
        """Runs up to ``batch_size`` tokens through the model and into the KV cache.

        Args:
            tokens: int32 ``[n]``; ``positions``, ``sequences`` and ``outputs`` go with them.
            outputs: which tokens get a row of logits.
            stop: asked while the CPU computes; True gives the batch up.

        Returns:
            False if ``stop`` ended it; the cache then may hold part of the batch.

        Raises:
            LlamaError: the KV cache is full, or llama.cpp refuses the batch.
        """
        filled = self._batch.fill(tokens, positions, sequences, outputs)
        rows = int(np.count_nonzero(self._batch.outputs[: len(tokens)]))
        if self._most_outputs and rows > self._most_outputs:
            raise LlamaError(
                f"{rows} rows of logits; the context was made for {self._most_outputs}."
            )
        since = log.line_count
        if stop is None:
            status = lib.llama_decode(self.handle, filled)
        else:
            aborter = lib.ggml_abort_callback(lambda _: stop())
            lib.llama_set_abort_callback(self.handle, aborter, None)
            try:
                status = lib.llama_decode(self.handle, filled)
            finally:
                lib.llama_set_abort_callback(self.handle, lib.ggml_abort_callback(), None)
        if status == _ABORTED:
            return False
        if status == _NO_KV_SLOT:
            raise LlamaError(f"The context is full: {self.size} tokens per sequence.")
        if status:
            raise LlamaError(f"llama.cpp failed to decode ({status}): {log.reason(since)}.")
        self._outputs = rows
        return True

    def prefill(
        self,
        tokens: Sequence[int],
        kept: int,
        *,
        sequence: int = 0,
        stop: StopFn | None = None,
    ) -> int:
        """Lets a sequence hold just ``tokens``, and keeps the logits after the last.

        Args:
            kept: so many of ``tokens`` the sequence holds already; less than all, as the last is
                always computed, for its logits.
            stop: asked before each batch and while the CPU computes; True gives the rest up.

        Returns:
            How many of ``tokens`` the sequence holds now: fewer than all if ``stop`` ended it.

        Raises:
            LlamaError: as of ``decode``.
        """
        self.keep(kept, sequence)
        for first in range(kept, len(tokens), self.batch_size):
            part = np.asarray(tokens[first : first + self.batch_size], np.int32)
            positions = np.arange(first, first + len(part), dtype=np.int32)
            last = positions == len(tokens) - 1
            stopped = stop is not None and stop()
            if stopped or not self.decode(
                part, positions, sequences=sequence, outputs=last, stop=stop
            ):
                self.keep(first, sequence)
                return first
        return len(tokens)

    def decode_one(self, token: int, position: int) -> None:
        """Runs one token of sequence 0 and keeps its logits."""
        status = lib.llama_decode(self.handle, self._batch.fill_one(token, position))
        if status == _NO_KV_SLOT:
            raise LlamaError(f"The context is full: {self.size} tokens.")
        if status:
            raise LlamaError(f"llama.cpp failed to decode ({status}).")
        self._outputs = 1

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last ``decode``, float32 ``[outputs, vocabulary]``.

        A view of llama.cpp's own buffer: the next ``decode`` overwrites it.
        """
        pointer = lib.llama_get_logits(self.handle)
        if not pointer:
            raise LlamaError("llama.cpp has no logits: nothing was decoded.")
        return np.ctypeslib.as_array(pointer, shape=(self._outputs, self.model.vocab_size))

    def keep(self, count: int, sequence: int = 0) -> None:
        """Forgets all of a sequence but its first ``count`` tokens."""
        lib.llama_memory_seq_rm(self._memory, sequence, count, -1)

    def clear(self) -> None:
        """Forgets everything."""
        lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Frees the context; calling it again does nothing."""
        if self.handle:
            lib.llama_free(self.handle)
            self.handle = None


class _Batch:
    """A ``llama_batch`` over numpy arrays that are filled again for every call."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._sequences = np.zeros(capacity, np.int32)
        self.outputs = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        int32s = ctypes.POINTER(ctypes.c_int32)
        self._struct = lib.llama_batch(
            0,
            self._tokens.ctypes.data_as(int32s),
            None,
            self._positions.ctypes.data_as(int32s),
            self._counts.ctypes.data_as(int32s),
            self._pointers.ctypes.data_as(ctypes.POINTER(int32s)),
            self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32] | int,
        outputs: NDArray[np.bool_] | bool,
    ) -> lib.llama_batch:
        n = len(tokens)
        if not 0 < n <= len(self._tokens):
            raise LlamaError(f"A batch of {n} tokens does not fit; at most {len(self._tokens)}.")
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        self._sequences[:n] = sequences
        self.outputs[:n] = outputs
        self._struct.n_tokens = n
        return self._struct

    def fill_one(self, token: int, position: int) -> lib.llama_batch:
        self._tokens[0] = token
        self._positions[0] = position
        self._sequences[0] = 0
        self.outputs[0] = 1
        self._struct.n_tokens = 1
        return self._struct


def _params(options: ContextOptions, model: LlamaModel) -> lib.llama_context_params:
    """llama.cpp's struct. It aborts the process for some values, so all are checked here."""
    _within("context", options.context, _MAX_CONTEXT)
    _within("parallel sequences", options.sequences, _MAX_SEQUENCES)
    _within("batch", options.batch, _MAX_CONTEXT)
    _within("ubatch", options.ubatch, options.batch)
    if options.threads is not None:
        _within("threads", options.threads, 1024)
    params: lib.llama_context_params = lib.llama_context_default_params()
    params.n_ctx = options.context * options.sequences
    params.n_seq_max = options.sequences
    params.n_batch = options.batch
    params.n_ubatch = options.ubatch
    params.n_outputs_max = options.outputs
    threads = model_threads(options.threads, model.hidden_size)
    params.n_threads = params.n_threads_batch = threads
    params.type_k = _kv_type(options.key_type)
    params.type_v = _kv_type(options.value_type)
    if options.flash_attention is not None:
        params.flash_attn_type = int(options.flash_attention)
    if options.yarn is not None:
        if not options.yarn >= 1.0:
            raise UsageError(f"YaRN factor {options.yarn:g} is below 1.")
        params.rope_scaling_type = _YARN
        params.rope_freq_scale = 1.0 / options.yarn
        params.yarn_orig_ctx = yarn_base(model.train_context)
    params.no_perf = True
    return params


def _within(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UsageError(f"{name} {value} is outside 1 to {most}.")


def _kv_type(name: str) -> int:
    if name.upper() not in KV_TYPES:
        raise UsageError(
            f"{name!r} is no type for the KV cache.", f"Known: {', '.join(KV_TYPES).lower()}."
        )
    return GGML_TYPES[name.upper()].id
