"""What the options of ``qwen3q estimate`` and ``qwen3q fit`` mean: GPUs, engines, tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3q.counts import counted
from qwen3q.errors import UsageError

if TYPE_CHECKING:
    from qwen3q.memory.gpus import Gpu
    from qwen3q.memory.settings import Engine
    from qwen3q.memory.source import Model

DEFAULT_CONTEXT = 8192
MAX_GPUS = 64
"""Of one estimate: no Qwen3 needs more, and each costs time to compute."""

_PROCESSOR = ("none", "cpu")
_COUNT = re.compile(r"(\d{1,18})\s*[xX×]\s*(.*)")

GpuOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        help='GPU by name, as "RTX 4090" or "2x RTX 4090"; auto for those here, '
        "none for the processor alone.",
    ),
]
VramOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vram",
        help="Free memory of a GPU, such as 24GiB (of RAM with --gpu none); repeat for several.",
    ),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="llama.cpp, transformers or vllm.")
]
KvOption = Annotated[
    str | None, typer.Option("--kv", help="Type of the KV cache, such as q8_0 or q8_0/f16.")
]
ParallelOption = Annotated[
    int,
    typer.Option("--parallel", min=1, max=4096, help="Sequences at once, each with its context."),
]


def choose_gpus(names: list[str] | None, vram: list[str] | None) -> tuple[list[Gpu], list[str]]:
    """The GPUs of ``--gpu`` and ``--vram``, and notes about them; none if neither is given.

    ``--gpu NAME --vram AMOUNT`` is that part with another amount of free memory; ``--gpu none`` is
    the processor alone.

    Raises:
        UsageError: no such GPU or amount, or too many of them.
    """
    from qwen3q.memory.gpus import custom_gpu, find_gpu, other_sizes, parse_bytes

    texts = vram or []
    amounts = [parse_bytes(text) for text in texts]
    if names and any(name.strip().lower() in _PROCESSOR for name in names):
        return _processor(names, texts, amounts)
    gpus: list[Gpu] = []
    notes: list[str] = []
    for name in names or []:
        if _is_auto(name):
            gpus += _detected(notes)
            continue
        count, part = _count(name)
        if len(gpus) + count > MAX_GPUS or count == 0:
            raise UsageError(
                f"--gpu {name!r}: 1 to {MAX_GPUS} GPUs can be estimated.",
                f'Write it like --gpu "2x {part}".',
            )
        found = find_gpu(part)
        others = other_sizes(part, found)
        if others:
            notes.append(
                f"{part} is taken as {found.name}; also sold: "
                f"{', '.join(other.name for other in others)}."
            )
        if found.uncertain:
            notes.append(f"Uncertain values of {found.name}: {', '.join(found.uncertain)}.")
        gpus += [found] * count
    if not amounts:
        return gpus, notes
    if gpus and len(amounts) not in (1, len(gpus)):
        raise UsageError(
            f"{counted(len(amounts), '--vram amount')} for {counted(len(gpus), 'GPU')}.",
            "Give one for all of them, or one for each.",
        )
    if gpus:
        each = amounts * len(gpus) if len(amounts) == 1 else amounts
        return [custom_gpu(a, like=g) for a, g in zip(each, gpus, strict=True)], notes
    return [
        custom_gpu(amount, amount=_typed_amount(text))
        for amount, text in zip(amounts, texts, strict=True)
    ], notes


def is_here(names: list[str] | None) -> bool:
    """Whether ``--gpu`` asks for GPUs of this machine."""
    return any(map(_is_auto, names or []))


def _is_auto(name: str) -> bool:
    return name.strip().lower() == "auto"


def this_machine() -> tuple[list[Gpu], list[str]]:
    """The GPUs that are here, or the processor where there is none, and notes about them."""
    from qwen3q.memory.detect import has_gpus

    if has_gpus():
        return choose_gpus(["auto"], None)
    gpus, notes = choose_gpus(["none"], None)
    return gpus, ["No GPU was found here, so this is for the processor.", *notes]


def parse_engine(name: str | None) -> Engine | None:
    """The engine called ``name``; None where each format's own is wanted.

    Raises:
        UsageError: no such engine; suggests the nearest.
    """
    from qwen3q.memory.settings import Engine

    if name is None:
        return None
    key = name.lower().replace("llamacpp", "llama.cpp").replace("llama-cpp", "llama.cpp")
    try:
        return Engine({"hf": "transformers", "llama": "llama.cpp"}.get(key, key))
    except ValueError:
        import difflib

        known = [engine.value for engine in Engine]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"--engine {name!r} is no engine that is estimated.",
            f"{hint}Known: {', '.join(known)}.",
        ) from None


def parse_format(text: str) -> str:
    """The format of ``--quant`` in the spelling of ``FORMATS``.

    Raises:
        UsageError: no such format; suggests the nearest.
    """
    from qwen3q.memory.source import canonical_format

    if not text.strip():
        raise UsageError(
            f"--quant {text!r} names no format.",
            "Write it like --quant gguf:Q4_K_M, or leave it out for all.",
        )
    return canonical_format(text)


def parse_context(text: str) -> int:
    """Tokens of ``32768``, ``32k`` or ``1m``.

    Raises:
        UsageError: not a number of tokens.
    """
    key = text.strip().lower().replace(",", "").replace("_", "")
    found = re.fullmatch(r"(\d{1,18})([km]?)", key)
    if found is None or int(found[1]) == 0:
        raise UsageError(
            f"--context {text!r} is no number of tokens.", "Write it like 32768 or 32k."
        )
    return int(found[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[found[2]]


def _processor(
    names: Sequence[str], texts: Sequence[str], amounts: Sequence[int]
) -> tuple[list[Gpu], list[str]]:
    """A processor with the free RAM of ``--vram``, else this machine's."""
    from qwen3q.memory.processor import processor, this_processor
    from qwen3q.memory.settings import HOST_BANDWIDTH

    if len(names) > 1 or len(amounts) > 1:
        raise UsageError(
            "--gpu none is the processor alone, with one amount of memory.",
            "Leave the others out, or keep layers on the CPU beside a GPU: --gpu-layers.",
        )
    if amounts:
        part = processor(amounts[0], _typed_amount(texts[0]))
        return [part], [f"Speeds assume {HOST_BANDWIDTH / 1e9:.0f} GB/s of memory bandwidth."]
    part, notes = this_processor()
    return [part], notes


def _detected(notes: list[str]) -> list[Gpu]:
    from qwen3q.memory.detect import detect_gpus
    from qwen3q.memory.gpus import custom_gpu

    gpus = []
    for found in detect_gpus():
        notes.append(
            f"{found.gpu.name}: {found.free_bytes / 2**30:.2f} of "
            f"{found.gpu.memory_bytes / 2**30:.2f} GiB are free now."
        )
        gpus.append(custom_gpu(found.free_bytes, like=found.gpu))
    return gpus


def _count(name: str) -> tuple[int, str]:
    """``2x RTX 3090`` is 2 and ``RTX 3090``, but ``7900xtx`` is one card.

    Raises:
        UsageError: a number alone.
    """
    from qwen3q.memory.gpus import match_gpu

    found = _COUNT.fullmatch(name.strip())
    if found is None or match_gpu(name) is not None:
        return 1, name
    count, part = int(found[1]), found[2]
    if not part:
        raise UsageError(
            f"--gpu {name!r} names no GPU.", 'Name it within quotes: --gpu "2x RTX 4090".'
        )
    if count > MAX_GPUS and match_gpu(part) is None:
        return 1, name
    return count, part


def _typed_amount(text: str) -> str:
    """An amount of memory with its unit: GiB where none was typed."""
    return text.strip() if text.strip()[-1].isalpha() else f"{text.strip()} GiB"


def engine_with(options: Sequence[str], fmt: str | None, engine: Engine | None) -> Engine | None:
    """The engine of a run, which must have all of ``options``; None for each format's own.

    Raises:
        UsageError: an option that the engine does not have.
    """
    from qwen3q.memory.estimate import default_engine
    from qwen3q.memory.settings import Engine

    runner = engine or (default_engine(fmt) if fmt else None)
    for option in options:
        owner, example = Engine.LLAMA_CPP, "gguf:Q4_K_M"
        if option == "--gpu-memory-utilization":
            owner, example = Engine.VLLM, "awq:int4"
        if runner not in (None, owner):
            raise UsageError(
                f"{option} is an option of {owner}; {runner} does not have it.",
                f"Leave it out, or estimate a run on {owner}, such as --quant {example}.",
            )
        runner = owner
    return runner


def tokens_of(context: str | None, model: Model) -> int:
    """Tokens of ``--context``, else the default, of a model with fewer its own.

    Raises:
        UsageError: more than the model reaches with YaRN.
    """
    from qwen3q.memory.settings import longest_context, native_context
    from qwen3q.models.yarn import MAX_YARN

    if context is None:
        return min(DEFAULT_CONTEXT, native_context(model.config))
    tokens, longest = parse_context(context), longest_context(model.config)
    if tokens > longest:
        raise UsageError(
            f"--context {context} is beyond YaRN's limit for {model.title}.",
            f"The longest is --context {longest} (--yarn {MAX_YARN:g}).",
        )
    return tokens


def cpu_experts_of(text: str | None, model: Model) -> int:
    """Layers of ``--offload-experts``, of which ``all`` are the model's.

    Raises:
        UsageError: neither a number nor all.
    """
    if text is None:
        return 0
    if text.strip().lower() == "all":
        return model.config.num_hidden_layers
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise UsageError(
            f"--offload-experts {text!r} is neither a number of layers nor all.",
            f"Give 0 to {model.config.num_hidden_layers}, or all.",
        )
    return int(text)
