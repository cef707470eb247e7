"""How Qwen3's model cards advise to sample answers ("Best Practices")."""

from __future__ import annotations

from typing import TypedDict


class Advised(TypedDict):
    """Settings of a sampler, by the names that samplers have for them."""

    temperature: float
    top_p: float
    top_k: int


THINKING: Advised = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
PLAIN: Advised = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
