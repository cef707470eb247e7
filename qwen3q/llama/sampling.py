"""How the next token is chosen: llama.cpp's own sampler chain."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from math import isfinite

from qwen3q.closing import Closing
from qwen3q.errors import UsageError
from qwen3q.llama.capi import lib
from qwen3q.llama.context import LlamaContext

_PENALTY_TOKENS = 1024
_SEED_LIMIT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """Settings of the sampler.

    Attributes:
        temperature: 0 takes the likeliest token always.
        top_k: candidates kept; 0 keeps all.
        top_p: probability mass kept, after the temperature as in transformers and vLLM.
        min_p: least probability relative to the likeliest; 0 is off.
        presence_penalty: taken off the logit of each token already generated; 0 is off.
        seed: for a repeatable answer; None draws one.
    """

    temperature: float
    top_k: int = 20
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None


class Sampler(Closing):
    """A sampler chain. Close it, or use it in a ``with``."""

    def __init__(self, sampling: SamplerOptions, vocab_size: int) -> None:
        """Builds the chain.

        Raises:
            UsageError: a setting out of range.
        """
        _check(sampling)
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self.handle = lib.llama_sampler_chain_init(params)
        for link in _links(sampling, vocab_size):
            lib.llama_sampler_chain_add(self.handle, link)

    def sample(self, context: LlamaContext) -> int:
        """Chooses a token from the last row of logits, and remembers it for penalties."""
        return int(lib.llama_sampler_sample(self.handle, context.handle, -1))

    def close(self) -> None:
        """Frees the chain; calling it again does nothing."""
        if self.handle:
            lib.llama_sampler_free(self.handle)
            self.handle = None


def _links(sampling: SamplerOptions, vocab_size: int) -> list[lib.llama_sampler_p]:
    """The chain's samplers in order. Top-k comes first, since it makes the rest cheap."""
    links = []
    if sampling.presence_penalty:
        links.append(
            lib.llama_sampler_init_penalties(
                vocab_size, _PENALTY_TOKENS, 1.0, 0.0, sampling.presence_penalty
            )
        )
    if sampling.temperature == 0:
        return [*links, lib.llama_sampler_init_greedy()]
    if sampling.top_k:
        links.append(lib.llama_sampler_init_top_k(sampling.top_k))
    links.append(lib.llama_sampler_init_temp(sampling.temperature))
    if sampling.top_p < 1:
        links.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        links.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    seed = sampling.seed if sampling.seed is not None else secrets.randbelow(_SEED_LIMIT)
    return [*links, lib.llama_sampler_init_dist(seed)]


def _check(sampling: SamplerOptions) -> None:
    ranges = (
        ("temperature", sampling.temperature, 0, 100),
        ("top-k", sampling.top_k, 0, 1 << 20),
        ("top-p", sampling.top_p, 0, 1),
        ("min-p", sampling.min_p, 0, 1),
        ("presence penalty", sampling.presence_penalty, -2, 2),
        ("seed", sampling.seed or 0, 0, _SEED_LIMIT - 1),
    )
    for name, value, low, high in ranges:
        if not isfinite(value) or not low <= value <= high:
            raise UsageError(f"{name} {value:g} is outside {low} to {high}.")
