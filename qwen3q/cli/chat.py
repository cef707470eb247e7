"""``qwen3q chat``: a conversation in the terminal, or one answer for a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3q.cli.options import GpuLayersOption, OfflineFlag, RevisionOption
from qwen3q.cli.output import JsonFlag, note, print_json, progress_bar, stdout_console
from qwen3q.errors import Qwen3qError, UsageError

if TYPE_CHECKING:
    from qwen3q.chat.session import ChatSession, SamplingChoice, Turn
    from qwen3q.llama.context import ContextOptions
    from qwen3q.llama.model import LlamaModel

DEFAULT_CONTEXT = 8192
LEAST_CONTEXT = 256
"""llama.cpp makes no smaller one, and rounds up to a multiple of it."""

GgufArgument = Annotated[
    str, typer.Argument(help="GGUF file, MODEL:TYPE such as qwen3-8b:Q4_K_M, or demo.")
]


def register(app: typer.Typer) -> None:
    app.command("chat")(chat)


def chat(
    model: GgufArgument,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Answer this and leave.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Text added to the prompt; - is stdin.")
    ] = None,
    think: Annotated[bool, typer.Option("--think/--no-think", help="Think first.")] = True,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="0 is greedy. Default: 0.6 thinking, 0.7 not."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: 0.95 thinking, 0.8 not.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, max=1 << 20, help="0 keeps all. Default: 20.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(min=0, max=1, help="Default: 0.")] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(min=-2, max=2, help="Against repetition. Default: 0.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=(1 << 32) - 2, help="For a repeatable answer.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Default: until the context is full.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=LEAST_CONTEXT,
            max=1 << 24,
            help=f"Tokens of context. Default: {DEFAULT_CONTEXT} at most.",
        ),
    ] = None,
    yarn: Annotated[
        float | None, typer.Option(help="YaRN factor for a longer context, up to 4.")
    ] = None,
    cache_type: Annotated[str, typer.Option(help="How the KV cache is stored.")] = "f16",
    flash_attention: Annotated[
        bool | None,
        typer.Option("--flash-attention/--no-flash-attention", help="Default: llama.cpp's choice."),
    ] = None,
    gpu_layers: GpuLayersOption = -1,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Default: physical cores.")
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Talk with a model in the terminal; with -p or a pipe, answer once.

    In a pipe only the answer is printed, without the thinking.
    """
    from qwen3q.chat.session import ChatSession, SamplingChoice
    from qwen3q.llama.context import ContextOptions, LlamaContext
    from qwen3q.llama.generate import Generator
    from qwen3q.llama.model import LlamaModel, LoadOptions
    from qwen3q.models.yarn import check_yarn
    from qwen3q.quantize.local_gguf import local_gguf

    question = _question(prompt, file)
    if question is None and json_output:
        raise UsageError("--json needs a question.", "Give one with -p, or pipe it in.")
    choice = SamplingChoice(temperature, top_k, top_p, min_p, presence_penalty, seed)
    if yarn is not None:
        check_yarn(yarn)
    _warn_of_greedy(choice, think)
    with progress_bar(quiet=json_output) as progress:
        path = local_gguf(model, revision=revision, offline=offline, progress=progress)
    with LlamaModel(path, LoadOptions(gpu_layers=gpu_layers)) as loaded:
        options = ContextOptions(
            context=_context_size(context, yarn, loaded),
            outputs=1,
            threads=threads,
            key_type=cache_type,
            value_type=cache_type,
            flash_attention=flash_attention,
            yarn=yarn,
        )
        with LlamaContext(loaded, options) as llama:
            session = ChatSession(
                Generator(llama),
                thinking=think,
                choice=choice,
                system=system,
                max_tokens=max_tokens,
            )
            if question is None:
                _talk(session, loaded, options)
            else:
                _answer_once(session, question, json_output=json_output)


def _question(prompt: str | None, file: Path | None) -> str | None:
    """The one-shot question, or None for a conversation."""
    from qwen3q.files import read_text

    parts = [prompt] if prompt is not None else []
    if file is not None:
        parts.append(sys.stdin.read() if str(file) == "-" else read_text(file))
    elif prompt is None and not sys.stdin.isatty():
        parts.append(sys.stdin.read())
    if not parts:
        return None
    question = "\n\n".join(part.strip("\n") for part in parts)
    if not question.strip():
        raise UsageError("The question is empty.", 'For instance: -p "What is 413 + 389?"')
    return question


def _warn_of_greedy(choice: SamplingChoice, think: bool) -> None:
    if choice.temperature == 0 and think:
        note("Qwen advises against greedy decoding in thinking mode: it can repeat without end.")


def _context_size(asked: int | None, yarn: float | None, model: LlamaModel) -> int:
    from qwen3q.models.yarn import yarn_base

    trained = model.train_context if yarn is None else int(yarn_base(model.train_context) * yarn)
    if asked is None:
        return min(DEFAULT_CONTEXT, trained)
    if asked > trained:
        note(
            f"This model was trained for {trained} tokens of context; beyond them answers get "
            "worse. --yarn 4 extends a Qwen3."
        )
    return asked


def _talk(session: ChatSession, model: LlamaModel, options: ContextOptions) -> None:
    from qwen3q.chat.terminal import Terminal

    console = stdout_console()
    name = model.metadata("general.name") or model.path.name
    mode = "thinking" if session.thinking else "not thinking"
    console.print(f"{name}, {mode}, {options.context} tokens of context. /help lists commands.")
    Terminal(session, console).run()


def _answer_once(session: ChatSession, question: str, *, json_output: bool) -> None:
    from qwen3q.chat.terminal import AnswerPrinter

    if json_output:
        turn = session.ask(question)
        print_json(turn_json(session, turn))
    else:
        console = stdout_console()
        printer = AnswerPrinter(console, show_thinking=console.is_terminal)
        turn = session.ask(question, printer)
        printer.end()
    _tell_of_the_cut(session, turn)


def _tell_of_the_cut(session: ChatSession, turn: Turn) -> None:
    """Says on stderr why the one answer ended early.

    Raises:
        Qwen3qError: it ended before its first word.
    """
    from qwen3q.llama.generate import StopReason

    or_else = ", or add --no-think." if session.thinking else "."
    if turn.stop_reason is StopReason.LENGTH:
        cut = f"The answer was cut at --max-tokens {turn.timings.generated_tokens}"
        hint = f"Raise --max-tokens{or_else}"
    elif turn.stop_reason is StopReason.CONTEXT:
        size = session.generator.context.size
        cut = f"The answer was cut where the context of {size} tokens ends"
        hint = f"Raise --context{or_else}"
    else:
        cut, hint = "The model ended", "Ask in other words, or with another --seed."
    if not turn.answer:
        raise Qwen3qError(f"{cut} before the first word of an answer.", hint)
    if turn.stop_reason is not StopReason.END:
        note(f"{cut}.")


def turn_json(session: ChatSession, turn: Turn) -> dict[str, Any]:
    """One answer for scripts."""
    timings = turn.timings
    return {
        "file": str(session.generator.context.model.path),
        "answer": turn.answer,
        "thinking": turn.thinking,
        "stop_reason": turn.stop_reason.value,
        "prompt_tokens": timings.prompt_tokens,
        "generated_tokens": timings.generated_tokens,
        "thinking_tokens": turn.thinking_tokens,
        "seconds_to_first_token": round(timings.prefill_seconds, 6),
        "decode_seconds": round(timings.decode_seconds, 6),
        "prefill_tokens_per_second": round(timings.prefill_tokens_per_second, 2),
        "decode_tokens_per_second": round(timings.decode_tokens_per_second, 2),
        "sampling": {
            "thinking": session.thinking,
            "temperature": turn.sampling.temperature,
            "top_k": turn.sampling.top_k,
            "top_p": turn.sampling.top_p,
            "min_p": turn.sampling.min_p,
            "presence_penalty": turn.sampling.presence_penalty,
            "seed": turn.sampling.seed,
        },
    }
