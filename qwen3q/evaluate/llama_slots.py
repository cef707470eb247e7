"""Sequences of one llama.cpp context that are continued side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import LlamaError
from qwen3q.evaluate.side_by_side import fitting_slots
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.model import LlamaModel
from qwen3q.prefix import common_prefix
from qwen3q.process_memory import free_memory

_SIDE_BY_SIDE = 8
"""Sequences at most: each has room for a whole answer from the start."""


class LlamaSlots:
    """As ``Slots``: one sequence of the context each."""

    def __init__(self, context: LlamaContext) -> None:
        self.context = context
        self.count = context.sequences
        self._held: list[list[int]] = [[] for _ in range(self.count)]

    def held(self, slot: int) -> Sequence[int]:
        """As ``Slots.held``."""
        return self._held[slot]

    def read(self, slot: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As ``Slots.read``; the beginning that the slot holds already is not computed again."""
        kept = min(common_prefix(self._held[slot], tokens), len(tokens) - 1)
        self._held[slot] = list(tokens[:kept])
        self.context.prefill(tokens, kept, sequence=slot)
        self._held[slot] = list(tokens)
        row: NDArray[np.float32] = self.context.logits()[0]
        return row

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """As ``Slots.step``."""
        positions = [len(self._held[slot]) for slot in slots]
        self.context.decode(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            sequences=np.array(slots, np.int32),
            outputs=True,
        )
        for slot, token in zip(slots, tokens, strict=True):
            self._held[slot].append(token)
        return self.context.logits()


def open_slots(model: LlamaModel, options: ContextOptions, wanted: int) -> LlamaSlots:
    """A context with up to ``wanted`` slots, as many as memory allows.

    Args:
        options: of one sequence.

    Raises:
        LlamaError: not even one fits.
    """
    # a system promises memory that it does not have, and a GPU's may be the same
    nbytes = options.context * model.kv_bytes_per_token
    count = fitting_slots(nbytes, free_memory(), min(wanted, _SIDE_BY_SIDE))
    while True:
        try:
            return LlamaSlots(LlamaContext(model, replace(options, sequences=count, outputs=count)))
        except LlamaError:
            if count == 1:
                raise
            count //= 2
