"""How many calibration tokens a model can make use of."""

from __future__ import annotations

from math import ceil

from qwen3q.calibrate.rows import MOST_ROWS
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import layer_tensors


def rows_enough(config: Qwen3Config, tokens_per_channel: float | None, length: int) -> int:
    """Rows of ``length`` tokens that are enough, at most ``MOST_ROWS``.

    A linear's Hessian has a row and a column per input channel. What it is missing after n tokens
    falls with n over its channels, so the widest linear says how many tokens matter; more of them
    cost time and change next to nothing. An expert sees its share of the tokens.

    Args:
        tokens_per_channel: tokens for each input channel of the widest linear; None for no limit.
    """
    if tokens_per_channel is None:
        return MOST_ROWS
    widest = 0.0
    for layer in range(config.num_hidden_layers):
        for spec in layer_tensors(config, layer):
            if spec.is_linear:
                share = 1.0
                if spec.expert is not None:
                    share = config.num_experts_per_tok / config.num_experts
                widest = max(widest, spec.shape[1] / share)
    return min(MOST_ROWS, ceil(widest * tokens_per_channel / length))
