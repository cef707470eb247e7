"""A conversation: messages in the model's own template, thinking apart from the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from qwen3q.chat.markup import encode, guard
from qwen3q.errors import ModelError, UsageError
from qwen3q.llama.context import StopFn
from qwen3q.llama.generate import Generator, StopReason, Timings
from qwen3q.llama.model import LlamaModel
from qwen3q.llama.sampling import SamplerOptions
from qwen3q.llama.text import TextStream
from qwen3q.models import advised
from qwen3q.models.template import NO_TEMPLATE, ChatTemplate

THINKING_SAMPLING = SamplerOptions(**advised.THINKING)
PLAIN_SAMPLING = SamplerOptions(**advised.PLAIN)

_T = TypeVar("_T")
_THINK, _END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it is generated."""

    text: str
    thinking: bool


PieceFn = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished answer.

    Attributes:
        thinking: what stood between ``<think>`` and ``</think>``, without outer newlines.
        thinking_tokens: tokens of it.
        kept: whether question and answer went into the history.
    """

    answer: str
    thinking: str
    thinking_tokens: int
    stop_reason: StopReason
    timings: Timings
    sampling: SamplerOptions
    kept: bool


@dataclass(frozen=True, slots=True)
class SamplingChoice:
    """What the user set; None takes the mode's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None

    def over(self, default: SamplerOptions) -> SamplerOptions:
        """``default`` with what is set here."""
        return replace(
            default,
            temperature=_first(self.temperature, default.temperature),
            top_k=_first(self.top_k, default.top_k),
            top_p=_first(self.top_p, default.top_p),
            min_p=_first(self.min_p, default.min_p),
            presence_penalty=_first(self.presence_penalty, default.presence_penalty),
            seed=self.seed,
        )


class ChatSession:
    """The history of a conversation, and the one place where it grows."""

    def __init__(
        self,
        generator: Generator,
        *,
        thinking: bool = True,
        choice: SamplingChoice | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Starts an empty conversation.

        Raises:
            ModelError: the file carries no chat template, or a broken one.
        """
        model = generator.context.model
        source = model.chat_template()
        if source is None:
            raise ModelError(
                f"{model.path} carries no chat template, so it can't be talked with.", NO_TEMPLATE
            )
        self.generator = generator
        self.thinking = thinking
        self.messages: list[dict[str, str]] = []
        self._template = ChatTemplate(source)
        self._choice = choice or SamplingChoice()
        self._system = system
        self._max_tokens = max_tokens
        self.reset()

    @property
    def sampling(self) -> SamplerOptions:
        """The settings of the next answer."""
        return self._choice.over(THINKING_SAMPLING if self.thinking else PLAIN_SAMPLING)

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def ask(self, text: str, on_piece: PieceFn | None = None, stop: StopFn | None = None) -> Turn:
        """Answers ``text`` and keeps both in the history, the thinking left out.

        An answer that ended before its first word outside the thinking is not kept, and neither
        is its question.

        Args:
            on_piece: told each piece of text when it is whole.
            stop: asked after every token; True ends the answer.

        Raises:
            UsageError: the conversation fills the context.
            ModelError: the template refuses the conversation.
            LlamaError: llama.cpp fails.
        """
        model = self.generator.context.model
        question = {"role": "user", "content": text}
        prompt = self._template.render(
            [m | {"content": guard(m["content"], model)} for m in [*self.messages, question]],
            enable_thinking=self.thinking,
            **self._special_tokens(),
        )
        tokens = encode(prompt, model)
        self._require_room(len(tokens))
        reader = _AnswerReader(model, on_piece, thinking=prompt.rstrip().endswith(_THINK))
        sampling = self.sampling
        for token in self.generator.generate(
            tokens, sampling, max_tokens=self._max_tokens, stop=stop
        ):
            reader.feed(token)
        reader.finish()
        answer, thinking = "".join(reader.answer).rstrip(), "".join(reader.thoughts).strip("\n")
        stop_reason = self.generator.stop_reason
        kept = bool(answer) or stop_reason is StopReason.END
        if kept:
            self.messages += [question, {"role": "assistant", "content": answer}]
        return Turn(
            answer,
            thinking,
            reader.thinking_tokens,
            stop_reason,
            self.generator.timings,
            sampling,
            kept,
        )

    def _special_tokens(self) -> dict[str, Any]:
        model = self.generator.context.model
        return {"bos_token": model.token_text(model.bos), "eos_token": model.token_text(model.eos)}

    def _require_room(self, tokens: int) -> None:
        size = self.generator.context.size
        if tokens >= size:
            raise UsageError(
                f"The conversation has {tokens} tokens, but the context holds {size}.",
                "Say less, forget the conversation with /reset, or start with a larger --context.",
            )


class _AnswerReader:
    """Sorts generated tokens into thinking and answer by the two tokens that mark it."""

    def __init__(self, model: LlamaModel, on_piece: PieceFn | None, *, thinking: bool) -> None:
        self.answer: list[str] = []
        self.thoughts: list[str] = []
        self.thinking_tokens = 0
        self._thinking = thinking
        self._on_piece = on_piece
        self._stream = TextStream(model)
        self._open = model.special_token(_THINK)
        self._close = model.special_token(_END_THINK)

    def feed(self, token: int) -> None:
        if token in (self._open, self._close):
            self._emit(self._stream.finish())
            self._thinking = token == self._open
            return
        self.thinking_tokens += self._thinking
        self._emit(self._stream.feed(token))

    def finish(self) -> None:
        self._emit(self._stream.finish())

    def _emit(self, text: str) -> None:
        channel = self.thoughts if self._thinking else self.answer
        if not channel:
            text = text.lstrip("\n")
        if not text:
            return
        channel.append(text)
        if self._on_piece is not None:
            self._on_piece(Piece(text, self._thinking))


def _first(chosen: _T | None, default: _T) -> _T:
    return default if chosen is None else chosen
