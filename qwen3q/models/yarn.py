"""YaRN: how Qwen3's context is extended beyond what it was trained on."""

from __future__ import annotations

from dataclasses import replace

from qwen3q.errors import UsageError
from qwen3q.models.config import Qwen3Config, Yarn

MAX_YARN = 4.0
"""The largest factor that Qwen3 was validated for."""
HYBRID_POSITIONS = 40960
"""Positions of the hybrid releases: 32,768 of context and 8,192 of answer."""
HYBRID_CONTEXT = 32768


def check_yarn(factor: float, option: str = "--yarn") -> None:
    """Refuses a factor that Qwen3 was not validated for, given as ``option``.

    Raises:
        UsageError: it is not above 1, or above ``MAX_YARN``.
    """
    if not 1.0 < factor <= MAX_YARN:
        raise UsageError(
            f"{option} {factor:g} is outside what Qwen3 was validated for.",
            f"Give a factor above 1 and up to {MAX_YARN:g}.",
        )


def already_extended(name: str) -> UsageError:
    """Why a context is not extended once more."""
    return UsageError(f"{name} has YaRN already.", "Ask for it without.")


def yarn_base(positions: int) -> int:
    """Tokens that a factor multiplies: the trained positions without room for an answer."""
    return HYBRID_CONTEXT if positions == HYBRID_POSITIONS else positions


def with_yarn(config: Qwen3Config, factor: float, name: str = "The model") -> Qwen3Config:
    """The config with its context extended by ``factor``.

    Raises:
        UsageError: a factor that ``check_yarn`` refuses, or the model has YaRN already.
    """
    check_yarn(factor)
    if config.yarn is not None:
        raise already_extended(name)
    base = yarn_base(config.max_position_embeddings)
    return replace(config, yarn=Yarn(factor, base), max_position_embeddings=int(base * factor))
