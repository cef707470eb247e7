"""The decoding loop: a prompt in, tokens out, the KV cache kept for the next prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter

from qwen3q.errors import UsageError
from qwen3q.llama.context import LlamaContext, StopFn
from qwen3q.llama.sampling import Sampler, SamplerOptions
from qwen3q.prefix import common_prefix


class StopReason(StrEnum):
    """Why an answer ended."""

    END = "end"
    LENGTH = "length"
    CONTEXT = "context"
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Timings:
    """What one generation cost.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: of them, those that the KV cache already held.
        prefill_seconds: from the start to the first token, which the prompt's logits give.
        generated_tokens: tokens chosen, the end token counted.
        decode_seconds: for all tokens after the first.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        return _rate(self.generated_tokens - 1, self.decode_seconds)


class Generator:
    """Generates in sequence 0 of a context, and knows which tokens its KV cache holds."""

    def __init__(self, context: LlamaContext) -> None:
        self.context = context
        self.timings = Timings()
        self.stop_reason = StopReason.END
        self._cached: list[int] = []

    def generate(
        self,
        prompt: Sequence[int],
        sampling: SamplerOptions,
        *,
        max_tokens: int | None = None,
        stop: StopFn | None = None,
    ) -> Iterator[int]:
        """Yields the answer's tokens; the end token is not among them.

        The longest beginning of ``prompt`` that the KV cache holds is not computed again.
        Afterwards ``timings`` and ``stop_reason`` tell how it went.

        Raises:
            UsageError: an empty prompt, or one that fills the context.
            LlamaError: llama.cpp fails.
        """
        if not prompt:
            raise UsageError("The prompt has no tokens.")
        if len(prompt) >= self.context.size:
            raise UsageError(
                f"The prompt has {len(prompt)} tokens; the context holds {self.context.size}."
            )
        self.timings = Timings(prompt_tokens=len(prompt))
        with Sampler(sampling, self.context.model.vocab_size) as sampler:
            started = perf_counter()
            if not self._prefill(prompt, stop):
                self.stop_reason = StopReason.INTERRUPTED
                return
            token = sampler.sample(self.context)
            self.timings.prefill_seconds = perf_counter() - started
            self.timings.generated_tokens = 1
            yield from self._decode(token, sampler, max_tokens, stop)

    def _prefill(self, prompt: Sequence[int], stop: StopFn | None) -> bool:
        """Brings the KV cache to hold ``prompt``; False if ``stop`` ended it."""
        kept = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        self._cached = list(prompt[:kept])
        self.timings.cached_tokens = kept
        held = self.context.prefill(prompt, kept, stop=stop)
        self._cached = list(prompt[:held])
        return held == len(prompt)

    def _decode(
        self, token: int, sampler: Sampler, max_tokens: int | None, stop: StopFn | None
    ) -> Iterator[int]:
        is_end = self.context.model.is_end
        while True:
            if is_end(token):
                self.stop_reason = StopReason.END
                return
            yield token
            if max_tokens is not None and self.timings.generated_tokens >= max_tokens:
                self.stop_reason = StopReason.LENGTH
                return
            if len(self._cached) >= self.context.size:
                self.stop_reason = StopReason.CONTEXT
                return
            if stop is not None and stop():
                self.stop_reason = StopReason.INTERRUPTED
                return
            started = perf_counter()
            self.context.decode_one(token, len(self._cached))
            self._cached.append(token)
            token = sampler.sample(self.context)
            self.timings.decode_seconds += perf_counter() - started
            self.timings.generated_tokens += 1


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0
