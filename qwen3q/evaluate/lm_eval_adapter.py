"""A backend as lm-evaluation-harness's language model (``lm_eval.api.model.LM``)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from qwen3q.evaluate.backends import Backend
from qwen3q.evaluate.loglikelihood import Continuation, loglikelihoods
from qwen3q.evaluate.sampling import Prompt, Sampling
from qwen3q.evaluate.tokens import TextCodec
from qwen3q.progress import ProgressFn, silent

_PIECE = 32
"""Tokens generated between looks for a stop string."""

_SIDE_BY_SIDE = 16
"""Texts written at a time: as many as a backend holds, so that none is read twice."""

Pair = tuple[object, list[int], list[int]]
"""What was asked, and its tokens: of the context and of the continuation."""


class BackendLM(TemplateLM):  # type: ignore[misc]
    """Answers the harness's three kinds of requests with a ``Backend``.

    Texts become tokens, and long ones are cut from the left, as in the harness's own ``HFLM``.
    """

    tokenizer_name = ""

    def __init__(
        self, model: Backend, codec: TextCodec, context: int, progress: ProgressFn = silent
    ) -> None:
        """Wraps ``model``, which reads up to ``context`` tokens at once."""
        super().__init__()
        self._model = model
        self._codec = codec
        self._progress = progress
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
        texts = [self._text(*request.args) for request in requests]
        for start in range(0, len(texts), _SIDE_BY_SIDE):
            self._write(texts[start : start + _SIDE_BY_SIDE])
            self._progress(min(start + _SIDE_BY_SIDE, len(texts)), len(texts), "answers")
        return [text.cut() for text in texts]

    def _text(self, prompt: str, settings: dict[str, Any]) -> _Text:
        wanted = normalize_gen_kwargs(dict(settings))
        left = int(wanted["max_gen_toks"])
        tokens = self.tok_encode(prompt)[-max(1, self.max_length - left) :]
        stops = [stop for stop in wanted.get("until") or [] if stop]
        return _Text(prompt, tokens, wanted, stops, left)

    def _write(self, texts: list[_Text]) -> None:
        """Continues all of them, a piece at a time."""
        while going := [text for text in texts if text.left > 0]:
            prompts = [Prompt([*text.tokens, *text.made], text.sampling) for text in going]
            pieces = self._model.generate(prompts, _PIECE, self._codec.stop_tokens)
            for text, piece in zip(going, pieces, strict=True):
                text.made += piece[: text.left]
                text.text = self._codec.decode(text.made)
                text.left -= _PIECE
                if len(piece) < _PIECE or text.is_stopped:
                    text.left = 0


@dataclass(slots=True)
class _Text:
    """One text that is written.

    Attributes:
        tokens: the prompt's, as far as it is read.
        wanted: the harness's settings.
        left: tokens that may still come.
        made, text: what has come.
    """

    prompt: str
    tokens: list[int]
    wanted: dict[str, Any]
    stops: list[str]
    left: int
    made: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def sampling(self) -> Sampling:
        return _sampling(self.wanted, self.prompt, len(self.made))

    @property
    def is_stopped(self) -> bool:
        return any(stop in self.text for stop in self.stops)

    def cut(self) -> str:
        """What comes before the first stop string."""
        stops = [self.text.index(stop) for stop in self.stops if stop in self.text]
        return self.text[: min(stops, default=None)]


def _sampling(wanted: dict[str, Any], prompt: str, made: int) -> Sampling:
    """The harness's settings; each piece of each answer has random numbers of its own."""
    return Sampling(
        temperature=float(wanted.get("temperature") or 0.0),
        top_p=float(wanted.get("top_p") or 1.0),
        top_k=int(wanted.get("top_k") or 0),
        min_p=float(wanted.get("min_p") or 0.0),
        seed=zlib.crc32(f"{prompt} {made}".encode()) >> 1,
    )
