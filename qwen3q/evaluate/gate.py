"""The thinking gate: does a quantized model still think, stop and answer as its float model does.

Both answer the same generated questions greedily, with thinking and without. A quantized model
fails where bootstrap intervals over the questions prove it worse.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import ModelError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import Backend, BackendOptions, open_backend
from qwen3q.evaluate.tasks import THINK_END, THINK_START, Task, is_correct
from qwen3q.evaluate.tokens import TextCodec, open_codec
from qwen3q.models.template import ChatTemplate
from qwen3q.progress import ProgressFn, silent

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "CYRILLIC", "ARABIC", "HEBREW", "THAI")


class Mode(StrEnum):
    """Whether the chat template asks for thinking."""

    THINKING = "thinking"
    PLAIN = "plain"


class Flaw(StrEnum):
    """What can be wrong with a reply, apart from its answer.

    UNOPENED: no ``<think>`` although thinking was asked for. UNCLOSED: it ends within its
    thinking. LEAKED: markup of thinking in the answer. EMPTY: no answer. ENDLESS: cut off at the
    token limit. LANGUAGE: letters of a script that the question has none of.
    """

    UNOPENED = "unopened"
    UNCLOSED = "unclosed"
    LEAKED = "leaked"
    EMPTY = "empty"
    ENDLESS = "endless"
    LANGUAGE = "language"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answered question.

    Attributes:
        text: the whole reply, ``<think>`` included where the prompt opened it.
        thinking_tokens: tokens up to ``</think>``; all of them if it is not closed.
    """

    task: Task
    text: str
    right: bool
    flaws: frozenset[Flaw]
    thinking_tokens: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A quantized model against its float model in one mode.

    Attributes:
        right: change of the share of right answers.
        flawed: change of the share of replies with any flaw.
    """

    right: Interval
    flawed: Interval

    @property
    def passed(self) -> bool:
        """Whether neither fewer right answers nor more flaws are proven."""
        return self.right.high >= 0 and self.flawed.low <= 0


def answer(
    artefact: Artefact,
    tasks: Sequence[Task],
    modes: Iterable[Mode],
    max_tokens: int,
    options: BackendOptions,
    progress: ProgressFn = silent,
) -> dict[Mode, list[Reply]]:
    """Asks ``artefact`` every question in every mode.

    Raises:
        ModelError: it has no chat template.
        Qwen3qError: it can't be run.
    """
    codec = open_codec(artefact)
    if codec.chat_template is None:
        raise ModelError(f"{artefact.name} has no chat template, so it can't be asked questions.")
    template = ChatTemplate(codec.chat_template)
    prompts = {
        mode: [
            template.render(
                [{"role": "user", "content": task.prompt}],
                enable_thinking=mode is Mode.THINKING,
            )
            for task in tasks
        ]
        for mode in modes
    }
    encoded = {
        mode: [codec.encode(prompt, parse_special=True).tolist() for prompt in texts]
        for mode, texts in prompts.items()
    }
    longest = max(len(tokens) for rows in encoded.values() for tokens in rows)
    total = len(tasks) * len(prompts)
    replies: dict[Mode, list[Reply]] = {}
    with open_backend(artefact, options, longest + max_tokens) as model:
        for done, mode in enumerate(prompts):
            replies[mode] = []
            for index, task in enumerate(tasks):
                tokens = encoded[mode][index]
                prompt = prompts[mode][index]
                replies[mode].append(_ask(model, codec, task, mode, prompt, tokens, max_tokens))
                progress(done * len(tasks) + index + 1, total, "questions")
    return replies


def _ask(
    model: Backend,
    codec: TextCodec,
    task: Task,
    mode: Mode,
    prompt: str,
    tokens: list[int],
    max_tokens: int,
) -> Reply:
    made = model.generate(tokens, max_tokens, codec.stop_tokens)
    text = codec.decode(made)
    if prompt.rstrip().endswith(THINK_START):
        text = THINK_START + text
    return Reply(
        task=task,
        text=text,
        right=is_correct(task, text),
        flaws=find_flaws(task.prompt, text, mode, ended=len(made) < max_tokens),
        thinking_tokens=_thinking_tokens(made, codec) if THINK_START in text else 0,
    )


def _thinking_tokens(made: list[int], codec: TextCodec) -> int:
    end = codec.encode(THINK_END, parse_special=True).tolist()
    return made.index(end[0]) + 1 if len(end) == 1 and end[0] in made else len(made)


def find_flaws(question: str, reply: str, mode: Mode, *, ended: bool) -> frozenset[Flaw]:
    """What is wrong with a reply.

    Args:
        ended: it ended by itself, not at the token limit.
    """
    flaws = set() if ended else {Flaw.ENDLESS}
    opened = reply.lstrip().startswith(THINK_START)
    closed = THINK_END in reply
    said = reply.partition(THINK_END)[2] if opened else reply
    if mode is Mode.THINKING and not opened:
        flaws.add(Flaw.UNOPENED)
    if opened and not closed and ended:
        flaws.add(Flaw.UNCLOSED)
    leaked = THINK_START in said or THINK_END in said
    if leaked or (mode is Mode.PLAIN and opened):
        flaws.add(Flaw.LEAKED)
    if not said.strip() and ended:
        flaws.add(Flaw.EMPTY)
    if scripts(reply) - scripts(question):
        flaws.add(Flaw.LANGUAGE)
    return frozenset(flaws)


def scripts(text: str) -> frozenset[str]:
    """Scripts other than Latin and Greek that ``text`` has letters of."""
    found = set()
    for letter in {c for c in text if ord(c) > 0x24F and c.isalpha()}:
        name = unicodedata.name(letter, "").partition(" ")[0]
        if name in _SCRIPTS:
            found.add(name)
    return frozenset(found)


def compare(reference: Sequence[Reply], replies: Sequence[Reply], seed: int = 0) -> Verdict:
    """Question by question: how much more often right, and how much more often flawed."""
    right = np.array([q.right - f.right for f, q in zip(reference, replies, strict=True)], float)
    flawed = np.array(
        [bool(q.flaws) - bool(f.flaws) for f, q in zip(reference, replies, strict=True)], float
    )
    return Verdict(bootstrap(right, seed), bootstrap(flawed, seed))


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """The mean's percentile interval over resampled questions (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high))
