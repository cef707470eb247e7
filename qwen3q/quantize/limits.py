"""How much is worked on at a time, so that temporaries stay small beside the layer itself."""

from __future__ import annotations

from qwen3q.models.config import Qwen3Config

SOLVED_AT_ONCE = 1 << 21
"""Weights of one linear that a processor's thread solves at a time."""
SOLVED_ON_ACCELERATOR = 1 << 26
FEWEST_OUTPUTS = 64
"""Output channels that are solved at a time at the least, of all experts side by side."""

SAMPLE_STRIDE = 4
"""Every n-th portion of the calibration rows is enough to search scales on."""

FITTED_OUTPUTS = 2048
"""Output channels that stand for all when scales are fitted; with much fewer, the scales fit the
sample's largest weights."""

EXPERT_TOKENS = 4096
"""Tokens of an expert that run at a time."""

_EXPERTS_BYTES = 1 << 30
"""About how much memory experts that are solved side by side may take."""


def too_few(tokens: int, least: int) -> bool:
    """Whether what is fitted to an expert's tokens would fit these and no others.

    Args:
        least: ``SolveOptions.min_expert_tokens``.
    """
    return tokens * 4 < least


def experts_at_once(config: Qwen3Config) -> int:
    """Experts that are solved side by side."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    bytes_each = 4 * (3 * max(hidden, inner) ** 2 + 12 * hidden * inner)
    return max(1, min(_EXPERTS_BYTES // bytes_each, config.num_experts))
