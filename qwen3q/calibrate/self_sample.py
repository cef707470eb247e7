"""Calibration text that the model writes itself, so that no data is needed.

Conversations begin with an empty user turn, which an instruction model fills with a question of
its own (Magpie, arXiv 2406.08464), and go on with its answer in one thinking mode or the other.
Raw text begins with one random word (LLM-QAT, arXiv 2305.17888).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from qwen3q.calibrate.render import TURN_END, ThinkingMode, thinking_mode
from qwen3q.calibrate.rows import TokenRows, check_size, describe, encode, pack
from qwen3q.errors import UsageError
from qwen3q.models import advised
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from qwen3q.models.template import ChatTemplate

SELF = "self"
SELF_ROWS = 64
"""Rows sampled when nobody says how many: generation is what takes the time."""
MOST_FAILURES = 20
_PLACE = "\N{REPLACEMENT CHARACTER}"
_SEEDS = 1 << 31
_FEWEST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One continuation asked of the model.

    Attributes:
        prompt: token ids.
        max_tokens: most tokens of the continuation.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int


SampleFn = Callable[[SampleRequest], Sequence[int]]
"""Continues a prompt: new tokens, without the end token that stopped it."""


def context_needed(length: int) -> int:
    """Tokens of context that requests for rows of ``length`` stay within."""
    return 4 * length + 64


def self_calibration(
    sample: SampleFn,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    length: int,
    rows: int | None = None,
    seed: int = 0,
    thinking: bool | None = None,
    progress: ProgressFn = silent,
) -> TokenRows:
    """Rows of text that the model samples, in the modes its template knows.

    Of five documents two are conversations with thinking, two without, one is raw text.

    Args:
        rows: rows wanted; None for ``SELF_ROWS``.
        thinking: True or False for one mode only.

    Raises:
        UsageError: the model writes nothing.
    """
    rows = SELF_ROWS if rows is None else rows
    check_size(length, rows)
    writer = _Writer(sample, tokenizer, template, length, random.Random(seed))
    documents = _with_progress(
        writer.documents(_modes(template, thinking)), rows * length, progress
    )
    packed = pack(documents, length=length, samples=rows, what="The model's own text")
    return TokenRows(packed, describe(SELF, packed, seed=seed))


def _modes(template: ChatTemplate, thinking: bool | None) -> list[bool | None]:
    """The kinds of documents in turn: with thinking, without, and raw text (None)."""
    mode = thinking_mode(template)
    both = mode is ThinkingMode.BOTH and thinking is None
    first = thinking is not False if mode is ThinkingMode.BOTH else mode is ThinkingMode.ALWAYS
    second = False if both else first
    return [first, second, first, second, None]


class _Writer:
    """Asks the model for one document after another."""

    def __init__(
        self,
        sample: SampleFn,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        length: int,
        rng: random.Random,
    ) -> None:
        self._sample = sample
        self._tokenizer = tokenizer
        self._template = template
        self._length = length
        self._rng = rng
        self._words = word_tokens(tokenizer)
        self._user_prefix = encode(tokenizer, user_turn_prefix(template))
        self._turn_end = encode(tokenizer, TURN_END)

    def documents(self, modes: Sequence[bool | None]) -> Iterator[list[int]]:
        """Documents without end.

        Raises:
            UsageError: the model keeps writing nothing.
        """
        failures = 0
        for mode in cycle(modes):
            document = self._raw_text() if mode is None else self._conversation(mode)
            failures = failures + 1 if document is None else 0
            if failures == MOST_FAILURES:
                raise UsageError(
                    "The model writes no text of its own to calibrate on.",
                    "Calibrate on a set or a file: --calibration balanced",
                )
            if document is not None:
                yield document

    def _raw_text(self) -> list[int] | None:
        first = self._rng.choice(self._words)
        text = self._ask([first], self._length - 1, temperature=1.0, top_p=1.0, top_k=0)
        return [first, *text] if len(text) >= _FEWEST_TOKENS else None

    def _conversation(self, thinking: bool) -> list[int] | None:
        turn = self._ask(self._user_prefix, self._length, temperature=1.0, top_p=0.99, top_k=0)
        question = self._tokenizer.decode(list(turn), skip_special_tokens=True).strip()
        if not question or len(turn) == self._length:
            return None
        prompt = encode(
            self._tokenizer,
            self._template.render(
                [{"role": "user", "content": question}], enable_thinking=thinking
            ),
        )
        most = 2 * self._length
        answer = self._ask(prompt, most, **(advised.THINKING if thinking else advised.PLAIN))
        if not answer:
            return None
        return [*prompt, *answer, *(self._turn_end if len(answer) < most else ())]

    def _ask(
        self, prompt: Sequence[int], most: int, *, temperature: float, top_p: float, top_k: int
    ) -> Sequence[int]:
        seed = self._rng.randrange(_SEEDS)
        return self._sample(SampleRequest(tuple(prompt), most, temperature, top_p, top_k, seed))


def user_turn_prefix(template: ChatTemplate) -> str:
    """What stands before the first user's words, a default system prompt included."""
    text = template.render([{"role": "user", "content": _PLACE}], add_generation_prompt=False)
    return text.partition(_PLACE)[0]


def word_tokens(tokenizer: Tokenizer) -> list[int]:
    """Tokens that begin a word in any script."""
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    ids = sorted(vocab.values())
    texts = tokenizer.decode_batch([[token] for token in ids])
    return [token for token, text in zip(ids, texts, strict=True) if _is_word(text)]


def _is_word(text: str) -> bool:
    word = text.removeprefix(" ")
    return word.isalpha() and (len(word) > 1 or not word.isascii())


def _with_progress(
    documents: Iterator[list[int]], total: int, progress: ProgressFn
) -> Iterator[list[int]]:
    done = 0
    for document in documents:
        done += len(document)
        progress(min(done, total), total, "sampling calibration text")
        yield document
