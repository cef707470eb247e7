"""The whole path on the embedded demo model: plan, quantize, measure, ask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qwen3q.data.texts import evaluation_text
from qwen3q.evaluate.perplexity import PerplexityResult, measure_perplexity
from qwen3q.llama.context import ContextOptions, LlamaContext
from qwen3q.llama.generate import Generator
from qwen3q.llama.model import LlamaModel
from qwen3q.llama.sampling import SamplerOptions
from qwen3q.llama.text import detokenize
from qwen3q.models.source import resolve
from qwen3q.models.template import ChatTemplate
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.plan.plan import Plan
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.artefacts import Artefact
from qwen3q.quantize.options import QuantizeOptions
from qwen3q.quantize.run import quantize_gguf

FLOAT = "BF16"
TYPES = ("Q8_0", "Q4_K_M", "Q3_K_S")
QUESTION = "What is 413 + 389?"
EXPECTED = "802"
TEXT = ("english", "code", "thinking")
"""What the demo model was trained on: prose, Python, chats."""
CONTEXT = 512
ANSWER_TOKENS = 400
"""More than the demo model ever takes to add two numbers."""


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One format of the demo model.

    Attributes:
        thinking: what the model wrote between ``<think>`` and ``</think>``.
        answer: what it said after that.
        right: the answer holds the sum.
    """

    path: Path
    plan: Plan
    perplexity: PerplexityResult
    thinking: str
    answer: str
    right: bool


def run_demo(
    out: Path, *, threads: int | None = None, progress: ProgressFn = silent
) -> list[DemoRow]:
    """Quantizes the demo model into ``out`` and measures each file; the float model comes first.

    Every file is measured on the same tokens.

    Raises:
        Qwen3qError: no room, or llama.cpp is missing or fails.
    """
    source = resolve("demo")
    types = [FILE_TYPES[name] for name in (FLOAT, *TYPES)]
    options = QuantizeOptions(threads=threads, replace=True)
    artefacts = quantize_gguf(source, types, out, options, progress=progress)
    text = evaluation_text(*TEXT)
    rows = []
    for before, artefact in enumerate(artefacts):

        def report(done: int, total: int, label: str, before: int = before) -> None:
            progress(before * total + done, len(artefacts) * total, "measure")

        rows.append(_measure(artefact, text, threads, report))
    return rows


def _measure(artefact: Artefact, text: str, threads: int | None, progress: ProgressFn) -> DemoRow:
    with LlamaModel(artefact.path) as model:
        perplexity = measure_perplexity(
            model, text, context=CONTEXT, parse_special=True, threads=threads, progress=progress
        )
        thinking, answer = ask(model, QUESTION, threads)
    right = re.findall(r"\d+", answer)[-1:] == [EXPECTED]
    return DemoRow(artefact.path, artefact.plan, perplexity, thinking, answer, right)


def ask(model: LlamaModel, question: str, threads: int | None = None) -> tuple[str, str]:
    """One question in thinking mode, greedily: what was thought, and the answer."""
    template = model.chat_template()
    assert template is not None, "the demo model has a chat template"
    prompt = ChatTemplate(template).render(
        [{"role": "user", "content": question}], enable_thinking=True
    )
    tokens = model.tokenize(prompt, parse_special=True).tolist()
    context = ContextOptions(context=len(tokens) + ANSWER_TOKENS, outputs=1, threads=threads)
    with LlamaContext(model, context) as llama:
        sampling = SamplerOptions(temperature=0)
        answer = Generator(llama).generate(tokens, sampling, max_tokens=ANSWER_TOKENS)
        text = detokenize(model, list(answer))
    thinking, closed, rest = text.partition("</think>")
    if not closed:
        return "", thinking.strip()
    return thinking.replace("<think>", "").strip(), rest.strip()
