"""Samples as the model would read and write them: through its own chat template."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from qwen3q.calibrate.rows import MOST_ROWS, TokenRows, describe, encode, pack
from qwen3q.calibrate.samples import THINK_END, THINK_START, Message, Sample
from qwen3q.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from qwen3q.models.template import ChatTemplate

TURN_END = "<|im_end|>\n"
DOCUMENT_END = "<|endoftext|>"


class ThinkingMode(Enum):
    """Which modes a template knows."""

    BOTH = "both"
    ALWAYS = "always"
    NEVER = "never"


def thinking_mode(template: ChatTemplate) -> ThinkingMode:
    """BOTH for Qwen3, ALWAYS for Thinking-2507, NEVER for Instruct-2507."""
    if "enable_thinking" in template.source:
        return ThinkingMode.BOTH
    prompt = template.render([{"role": "user", "content": "?"}])
    return ThinkingMode.ALWAYS if _thinking_is_open(prompt) else ThinkingMode.NEVER


def render_calibration(
    samples: Iterable[Sample],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    name: str,
    length: int,
    rows: int | None = None,
    most: int = MOST_ROWS,
    thinking: bool | None = None,
    **about: str | int | None,
) -> TokenRows:
    """Samples rendered in their order, joined, and cut into rows.

    Args:
        samples: read only as far as needed.
        template: may be None if all samples are raw text.
        rows: rows wanted; None for all, up to ``most``.
        thinking: True for answers that are thought out and raw text only, False for no thinking,
            None for both modes.
        about: more for the description.

    Raises:
        UsageError: too few tokens.
        ModelError: no template, or it refuses a conversation.
    """
    mode = thinking_mode(template) if template else ThinkingMode.NEVER
    documents = (
        encode(tokenizer, render_sample(sample, template, mode, wish))
        for sample, wish in _with_wishes(samples, thinking)
    )
    packed = pack(documents, length=length, samples=rows, what=name, most=most)
    return TokenRows(packed, describe(name, packed, **about))


def balanced_order(samples: Sequence[Sample], seed: int) -> list[Sample]:
    """Shuffled so that every beginning of the list holds each kind in its share.

    The samples of one kind, language and mode get evenly spaced places, each jittered.
    """
    rng = random.Random(seed)
    strata: dict[tuple[str, str, bool], list[Sample]] = defaultdict(list)
    for sample in samples:
        strata[sample.kind, sample.language, sample.thinks].append(sample)
    placed: list[tuple[float, int, Sample]] = []
    for members in strata.values():
        rng.shuffle(members)
        for index, sample in enumerate(members):
            placed.append(((index + rng.random()) / len(members), len(placed), sample))
    return [sample for _, _, sample in sorted(placed, key=lambda entry: entry[:2])]


def render_sample(
    sample: Sample, template: ChatTemplate | None, mode: ThinkingMode, thinking: bool
) -> str:
    """The text of one sample, up to and with the end of its last turn.

    The last answer stands behind the generation prompt, as the model itself would have written
    it: templates may drop the thinking of answers that are in the past.

    Args:
        thinking: keep the thinking of the answer; of a conversation without an answer, the mode
            its prompt asks for. A template that knows one mode only has its way.
    """
    if sample.text is not None:
        return sample.text + DOCUMENT_END
    if template is None:
        raise ModelError(
            "The model has no chat template, so conversations can't be rendered.",
            "Calibrate it on plain text: --calibration FILE.txt",
        )
    thinking = mode is ThinkingMode.ALWAYS or (mode is ThinkingMode.BOTH and thinking)
    tools = sample.tools or None
    if not sample.has_answer:
        return template.render(sample.messages, tools=tools, enable_thinking=thinking)
    reasoning = sample.messages[-1].get("reasoning_content") if thinking else None
    turns = sample.messages if reasoning else [_unthinking(turn) for turn in sample.messages]
    *past, answer = turns
    if answer.get("tool_calls") and "tool_calls" in template.source:
        return template.render(
            turns, tools=tools, enable_thinking=bool(reasoning), add_generation_prompt=False
        )
    asks = bool(reasoning) or mode is ThinkingMode.ALWAYS
    prompt = template.render(past, tools=tools, enable_thinking=asks)
    text = prompt
    if reasoning:
        text += "" if _thinking_is_open(prompt) else f"{THINK_START}\n"
        text += f"{reasoning}\n{THINK_END}\n\n"
    elif _thinking_is_open(prompt):
        text += f"\n{THINK_END}\n\n"
    return text + "\n".join([*_content(answer), *_tool_calls(answer)]) + TURN_END


def _with_wishes(samples: Iterable[Sample], thinking: bool | None) -> Iterator[tuple[Sample, bool]]:
    """Each sample with the mode to render it in; prompts without an answer alternate."""
    alternate = False
    for sample in samples:
        if not sample.text and not sample.messages:
            continue
        if thinking is None and sample.messages and not sample.has_answer:
            alternate = not alternate
            yield sample, alternate
        elif not thinking or sample.text or sample.thinks or not sample.has_answer:
            yield sample, sample.thinks if thinking is None else thinking


def _thinking_is_open(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK_START)


def _unthinking(turn: Message) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "reasoning_content"}


def _content(answer: Message) -> list[str]:
    return [answer["content"]] if answer["content"] else []


def _tool_calls(answer: Message) -> list[str]:
    """Calls in Qwen3's form, for a template that has none of its own; arguments that are JSON text
    already stay as they are."""
    texts = []
    for call in answer.get("tool_calls", ()):
        function = call.get("function", call)
        name, arguments = json.dumps(function["name"], ensure_ascii=False), function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        texts.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return texts
