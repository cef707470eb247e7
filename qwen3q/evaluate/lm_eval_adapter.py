"""A backend as lm-evaluation-harness's language model (``lm_eval.api.model.LM``)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from qwen3q.errors import UsageError
from qwen3q.evaluate.answers import Answers
from qwen3q.evaluate.backends import Backend
from qwen3q.evaluate.loglikelihood import Continuation, loglikelihoods
from qwen3q.evaluate.sampling import Prompt, Sampling
from qwen3q.evaluate.tokens import TextCodec
from qwen3q.progress import ProgressFn, silent

_PARTIAL = 4
"""Tokens more than a stop text has bytes, as the first may be part of a character."""

KeptAnswersFn = Callable[[object], Answers]
"""The answers there are already to what its argument's ``repr`` tells."""

Pair = tuple[object, list[int], list[int]]
"""What was asked, and its tokens: of the context and of the continuation."""


class BackendLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness's three kinds of requests with a ``Backend``.

    Texts become tokens, and long ones are cut from the left, as in the harness's own ``HFLM``.
    """

    tokenizer_name = ""

    def __init__(
        self,
        model: Backend,
        codec: TextCodec,
        context: int,
        progress: ProgressFn = silent,
        kept: KeptAnswersFn | None = None,
    ) -> None:
        """Wraps ``model``, which reads up to ``context`` tokens at once.

        Args:
            kept: where answers to these prompts are kept; None for nowhere.
        """
        super().__init__()
        self._model = model
        self._codec = codec
        self._progress = progress
        self._kept = kept or _kept_nowhere
        self.max_length = context

    @property
    def eot_token_id(self) -> int:
        return self._codec.eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context is replaced by."""
        return self._codec.eos if self._codec.bos is None else self._codec.bos

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        tokens: list[int] = self._codec.encode(string, parse_special=True).tolist()
        return tokens

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        pairs: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return pairs

    def _loglikelihood_tokens(self, requests: list[Pair], **_: Any) -> list[tuple[float, bool]]:
        asked = []
        for _text, context, continuation in requests:
            tokens = (context + continuation)[-(self.max_length + 1) :]
            start = max(1, len(tokens) - len(continuation))
            asked.append(Continuation(tuple(tokens), start))
        found = loglikelihoods(self._model, asked, self._progress)
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        pairs: list[Pair] = []
        windows_of = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            made: list[Pair] = [(None, *make_disjoint_window(window)) for window in windows]
            pairs += made
            windows_of.append(len(made))
        scores = iter(self._loglikelihood_tokens(pairs))
        return [sum(next(scores)[0] for _ in range(count)) for count in windows_of]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        again: Counter[str] = Counter()
        asked = []
        for request in requests:
            text, settings = request.args
            asked.append(self._question(text, settings, again[text]))
            again[text] += 1
        kept = self._kept([_identity(question) for question in asked])
        missing = [number for number in range(len(asked)) if number not in kept.tokens]

        def finished(place: int, tokens: list[int]) -> None:
            kept.add(missing[place], tokens)
            self._progress(len(kept.tokens), len(asked), "answers")

        if missing:
            self._model.generate(
                [asked[number].prompt for number in missing],
                max(question.limit for question in asked),
                self._codec.stop_tokens,
                finished,
            )
        return [
            question.stops.cut(self._codec.decode(kept.tokens[number]))
            for number, question in enumerate(asked)
        ]

    def _question(self, text: str, settings: dict[str, Any], again: int) -> _Question:
        wanted = normalize_gen_kwargs(dict(settings))
        limit = int(wanted["max_gen_toks"])
        if limit >= self.max_length:
            raise UsageError(
                f"A task asks for answers of {limit:,} tokens, and the model's context holds "
                f"{self.max_length:,} with the question.",
                "Leave that task out, or serve the model with a longer context.",
            )
        tokens = self.tok_encode(text)[-(self.max_length - limit) :] or [self.prefix_token_id]
        stops = _Stops(tuple(stop for stop in wanted.get("until") or [] if stop), self._codec)
        ended = stops.found if stops.texts else None
        sampling = _sampling(wanted, text, again)
        return _Question(Prompt(tokens, sampling, ended, limit), stops, limit)


@dataclass(frozen=True, slots=True)
class _Stops:
    """Texts that end an answer."""

    texts: tuple[str, ...]
    codec: TextCodec

    def found(self, made: Sequence[int]) -> bool:
        """Whether the newest token completes one."""
        # no token is shorter than a byte, so older ones have no part in it
        length = max((len(text.encode()) for text in self.texts), default=0)
        end = self.codec.decode(made[-length - _PARTIAL :]) if length else ""
        return any(text in end for text in self.texts)

    def cut(self, text: str) -> str:
        """What comes before the first."""
        return text[: min((text.index(t) for t in self.texts if t in text), default=None)]


@dataclass(frozen=True, slots=True)
class _Question:
    """A prompt, what ends its answer, and the most tokens of it."""

    prompt: Prompt
    stops: _Stops
    limit: int


def _identity(question: _Question) -> tuple[object, ...]:
    """What the answer to a question depends on, beside the model."""
    prompt = question.prompt
    return list(prompt.tokens), prompt.sampling, question.stops.texts, question.limit


def _kept_nowhere(_: object) -> Answers:
    return Answers(None, {}, resume=False)


def _sampling(wanted: dict[str, Any], prompt: str, again: int) -> Sampling:
    """The harness's settings; each answer has random numbers of its own, and so has each of several
    to one question."""
    return Sampling(
        temperature=float(wanted.get("temperature") or 0.0),
        top_p=float(wanted.get("top_p") or 1.0),
        top_k=int(wanted.get("top_k") or 0),
        min_p=float(wanted.get("min_p") or 0.0),
        seed=zlib.crc32(f"{again} {prompt}".encode()) >> 1,
    )
