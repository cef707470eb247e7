"""The thinking gate: does a quantized model still think, stop and answer as its float model does.

Both answer the same generated questions, with thinking and without, sampled as Qwen3's model cards
advise and with the same random numbers. A quantized model fails where bootstrap intervals over the
questions prove it worse.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import ModelError
from qwen3q.evaluate.answers import Answers
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.evaluate.gate_flaws import Flaw, Mode, find_flaws
from qwen3q.evaluate.reply_lengths import ReplyProgress
from qwen3q.evaluate.sampling import GREEDY, Prompt, Sampling
from qwen3q.evaluate.tasks import THINK_END, THINK_START, Task, is_correct
from qwen3q.evaluate.tokens import TextCodec, open_codec
from qwen3q.models import advised
from qwen3q.models.template import NO_TEMPLATE, ChatTemplate
from qwen3q.progress import ProgressFn, silent

ADVISED = {
    Mode.THINKING: Sampling(**advised.THINKING),
    Mode.PLAIN: Sampling(**advised.PLAIN),
}
"""What Qwen3's model cards advise; greedy thinking may never end, they say."""

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put.

    Attributes:
        samples: replies to each question; greedy decoding has one.
        max_tokens: where a reply is cut off.
        seed: of all replies; each question and sample has its own from it.
    """

    samples: int = 1
    greedy: bool = False
    max_tokens: int = 2048
    seed: int = 0

    def sampling(self, mode: Mode, question: int, sample: int) -> Sampling:
        """How one reply is sampled, whichever model gives it."""
        if self.greedy:
            return GREEDY
        seed = zlib.crc32(f"{self.seed} {question} {sample}".encode()) >> 1
        return replace(ADVISED[mode], seed=seed)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to a question.

    Attributes:
        text: the whole reply, ``<think>`` included where the prompt opened it.
        thinking_tokens: tokens up to ``</think>``; all of them if it is not closed.
    """

    task: Task
    text: str
    right: bool
    flaws: frozenset[Flaw]
    thinking_tokens: int


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """A reply without its question, as JSON has it."""
    return {
        "text": reply.text,
        "right": reply.right,
        "flaws": sorted(reply.flaws),
        "thinking_tokens": reply.thinking_tokens,
    }


def reply_from_json(task: Task, plain: Mapping[str, Any]) -> Reply:
    """The reply that ``reply_to_json`` wrote."""
    flaws = frozenset(map(Flaw, plain["flaws"]))
    return Reply(task, plain["text"], plain["right"], flaws, plain["thinking_tokens"])


Replies = list[tuple[Reply, ...]]
"""The replies to each question."""


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
        thinking: change of the thinking's length, in tokens.
        telling: whether the float model answers enough right for a loss of all to be proven.
    """

    right: Interval
    flawed: Interval
    thinking: Interval
    telling: bool = True

    @property
    def passed(self) -> bool:
        """Whether neither fewer right answers nor more flaws are proven."""
        return self.right.high >= 0 and self.flawed.low <= 0

    @property
    def word(self) -> str:
        """``pass``, ``fail``, or ``inconclusive`` where it could not have failed by its answers."""
        if not self.passed:
            return "fail"
        return "pass" if self.telling else "inconclusive"


def answer(
    artefact: Artefact,
    tasks: Sequence[Task],
    asking: Asking,
    options: BackendOptions,
    kept: Answers,
    progress: ProgressFn = silent,
) -> dict[Mode, Replies]:
    """Asks ``artefact`` every question in every mode.

    Args:
        kept: the answers there are already, and where others are kept as they come.

    Raises:
        ModelError: it has no chat template.
        Qwen3qError: it can't be run.
    """
    codec = open_codec(artefact)
    texts = _prompts(artefact, codec, tasks)
    encoded = {key: codec.encode(text, parse_special=True).tolist() for key, text in texts.items()}
    samples = range(1 if asking.greedy else asking.samples)
    asked = [(mode, i, n) for mode, i in texts for n in samples]
    prompts = [Prompt(encoded[mode, i], asking.sampling(mode, i, n)) for mode, i, n in asked]
    missing = [number for number in range(len(asked)) if number not in kept.tokens]

    earlier = {number: len(tokens) for number, tokens in kept.tokens.items()}
    told = ReplyProgress(earlier, len(asked), asking.max_tokens, progress)

    def finished(place: int, tokens: list[int]) -> None:
        kept.add(missing[place], tokens)
        told.finished(missing[place], len(tokens))

    def grown(place: int, length: int) -> None:
        told.grown(missing[place], length)

    if missing:
        longest = max(len(prompt.tokens) for prompt in prompts)
        with open_backend(artefact, options, longest + asking.max_tokens) as model:
            model.generate(
                [prompts[number] for number in missing],
                asking.max_tokens,
                codec.stop_tokens,
                finished,
                grown,
            )
    replies: dict[Mode, list[list[Reply]]] = {mode: [[] for _ in tasks] for mode in Mode}
    for number, (mode, i, _) in enumerate(asked):
        reply = _reply(tasks[i], mode, texts[mode, i], kept.tokens[number], codec, asking)
        replies[mode][i].append(reply)
    return {mode: [tuple(given) for given in replies[mode]] for mode in Mode}


def longest_question(artefact: Artefact, tasks: Sequence[Task]) -> int:
    """Tokens of the longest, in the model's own template.

    Raises:
        ModelError: ``artefact`` has no chat template.
    """
    codec = open_codec(artefact)
    texts = _prompts(artefact, codec, tasks).values()
    return max(len(codec.encode(text, parse_special=True)) for text in texts)


def chat_template(artefact: Artefact, codec: TextCodec) -> ChatTemplate:
    """The model's own, as ``codec``, its tokenizer, holds it.

    Raises:
        ModelError: there is none.
    """
    if codec.chat_template is None:
        raise ModelError(
            f"{artefact.name} has no chat template, so it can't be asked questions.", NO_TEMPLATE
        )
    return ChatTemplate(codec.chat_template)


def _prompts(
    artefact: Artefact, codec: TextCodec, tasks: Sequence[Task]
) -> dict[tuple[Mode, int], str]:
    """Each task in each mode, in the model's own template."""
    template = chat_template(artefact, codec)
    return {
        (mode, number): template.render(
            [{"role": "user", "content": task.prompt}], enable_thinking=mode is Mode.THINKING
        )
        for mode in Mode
        for number, task in enumerate(tasks)
    }


def _reply(
    task: Task, mode: Mode, prompt: str, made: list[int], codec: TextCodec, asking: Asking
) -> Reply:
    text = codec.decode(made)
    if prompt.rstrip().endswith(THINK_START):
        text = THINK_START + text
    return Reply(
        task=task,
        text=text,
        right=is_correct(task, text),
        flaws=find_flaws(task.prompt, text, mode, ended=len(made) < asking.max_tokens),
        thinking_tokens=_thinking_tokens(made, codec) if THINK_START in text else 0,
    )


def _thinking_tokens(made: list[int], codec: TextCodec) -> int:
    end = codec.encode(THINK_END, parse_special=True).tolist()
    return made.index(end[0]) + 1 if len(end) == 1 and end[0] in made else len(made)


def compare(reference: Replies, replies: Replies, seed: int = 0) -> Verdict:
    """Question by question, over the means of their samples: what became of the answers."""

    def means(side: Replies, value: Callable[[Reply], float]) -> NDArray[np.float64]:
        return np.array([np.mean([value(reply) for reply in given]) for given in side])

    def change(value: Callable[[Reply], float]) -> Interval:
        return bootstrap(means(replies, value) - means(reference, value), seed)

    return Verdict(
        right=change(lambda reply: reply.right),
        flawed=change(lambda reply: bool(reply.flaws)),
        thinking=change(lambda reply: reply.thinking_tokens),
        telling=bootstrap(-means(reference, lambda reply: reply.right), seed).high < 0,
    )


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """The mean's percentile interval over resampled questions (Efron, 1979)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high))
