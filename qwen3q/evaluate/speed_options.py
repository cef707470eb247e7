"""What a speed run times; apart from ``speed.py``, which loads llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeedOptions:
    """What is timed.

    Attributes:
        prompts: lengths of prompts to read, of each sequence.
        generate: tokens to decode, of each sequence.
        depths: tokens that the cache holds before, of each sequence.
        threads: None for the physical cores.
        batches: sequences side by side.
    """

    prompts: tuple[int, ...] = (512,)
    generate: int = 64
    depths: tuple[int, ...] = (0,)
    repeats: int = 5
    threads: int | None = None
    batches: tuple[int, ...] = (1,)
