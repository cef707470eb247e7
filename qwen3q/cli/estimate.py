"""``qwen3q estimate``: does it fit, where every MiB goes, and how fast it will be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3q.cli.output import JsonFlag, print_json
from qwen3q.errors import UsageError

if TYPE_CHECKING:
    from qwen3q.memory.estimate import Estimate
    from qwen3q.memory.gpus import Gpu
    from qwen3q.memory.settings import Engine, Settings
    from qwen3q.memory.source import Model

DEFAULT_CONTEXT = 8192
MAX_GPUS = 64
"""The most GPUs that tensor parallelism splits a Qwen3 over: one attention head each."""

_COUNT = re.compile(r"(\d{1,18})\s*[xX×]\s*(.*)")

GpuOption = Annotated[
    list[str] | None,
    typer.Option("--gpu", help='GPU by name, as "RTX 4090" or "2x RTX 4090"; auto for those here.'),
]
VramOption = Annotated[
    list[str] | None,
    typer.Option("--vram", help="Free memory of a GPU, such as 24GiB; repeat for several."),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="llama.cpp, transformers or vllm.")
]
KvOption = Annotated[
    str | None, typer.Option("--kv", help="Type of the KV cache, such as q8_0 or q8_0/f16.")
]
ParallelOption = Annotated[
    int, typer.Option("--parallel", min=1, help="Sequences at once, each with its context.")
]


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)


def estimate(
    model: Annotated[str, typer.Argument(help="Alias, Hub id, folder, GGUF or safetensors file.")],
    quant: Annotated[
        str | None, typer.Option("--quant", help="Such as gguf:Q4_K_M or awq:int4; all if absent.")
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Tokens of one sequence, such as 32768 or 32k.")
    ] = None,
    gpu: GpuOption = None,
    vram: VramOption = None,
    engine: EngineOption = None,
    kv: KvOption = None,
    gpu_layers: Annotated[
        int | None,
        typer.Option("--gpu-layers", min=0, help="Layers on GPUs, the output counted (-ngl)."),
    ] = None,
    offload_experts: Annotated[
        str | None,
        typer.Option("--offload-experts", help="Layers whose experts stay on the CPU, or all."),
    ] = None,
    parallel: ParallelOption = 1,
    ubatch: Annotated[
        int, typer.Option("--ubatch", min=1, help="Tokens of one pass (llama.cpp's -ub).")
    ] = 512,
    no_flash_attn: Annotated[
        bool, typer.Option("--no-flash-attn", help="Without flash attention.")
    ] = False,
    yarn: Annotated[
        float | None, typer.Option("--yarn", help="YaRN factor, for a longer context.")
    ] = None,
    utilization: Annotated[
        float, typer.Option("--gpu-memory-utilization", help="Share of a GPU that vLLM takes.")
    ] = 0.9,
    json_output: JsonFlag = False,
) -> None:
    """Memory and speed of a model before it is downloaded: per device, in the loader's names."""
    from qwen3q.memory.settings import Settings
    from qwen3q.memory.source import canonical_format, find_model

    found = find_model(model)
    gpus, notes = choose_gpus(gpu, vram)
    if not 0.0 < utilization <= 1.0:
        raise UsageError(f"--gpu-memory-utilization {utilization:g} is no share between 0 and 1.")
    settings = Settings(
        context=_tokens(context, found),
        parallel=parallel,
        ubatch=ubatch,
        flash_attention=not no_flash_attn,
        gpu_layers=gpu_layers,
        cpu_experts=_cpu_experts(offload_experts, found),
        yarn=yarn,
        utilization=utilization,
    )
    runner = parse_engine(engine)
    wanted = canonical_format(quant) if quant else None
    if wanted is None and found.stored is not None:
        wanted = found.stored.format
    if wanted is not None:
        _one(found, wanted, settings, gpus, notes, kv, runner, json_output)
    else:
        _table(found, settings, gpus, notes, kv, runner, context is not None, json_output)


def choose_gpus(names: list[str] | None, vram: list[str] | None) -> tuple[list[Gpu], list[str]]:
    """The GPUs of ``--gpu`` and ``--vram``, and notes about them; none if neither is given.

    ``--gpu NAME --vram AMOUNT`` is that part with another amount of free memory.
    """
    from qwen3q.memory.gpus import custom_gpu, find_gpu, other_sizes, parse_bytes

    texts = vram or []
    amounts = [parse_bytes(text) for text in texts]
    gpus: list[Gpu] = []
    notes: list[str] = []
    for name in names or []:
        if name.strip().lower() == "auto":
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
        raise UsageError(f"{len(amounts)} --vram amounts for {len(gpus)} GPUs.")
    if gpus:
        each = amounts * len(gpus) if len(amounts) == 1 else amounts
        return [custom_gpu(a, like=g) for a, g in zip(each, gpus, strict=True)], notes
    return [
        custom_gpu(amount, amount=_typed_amount(text))
        for amount, text in zip(amounts, texts, strict=True)
    ], notes


def parse_engine(name: str | None) -> Engine | None:
    """The engine called ``name``; None where each format's own is wanted."""
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
            f"{name!r} is no engine that is estimated.", f"{hint}Known: {', '.join(known)}."
        ) from None


def parse_context(text: str) -> int:
    """Tokens of ``32768``, ``32k`` or ``1m``."""
    key = text.strip().lower().replace(",", "").replace("_", "")
    found = re.fullmatch(r"(\d{1,18})([km]?)", key)
    if found is None or int(found[1]) == 0:
        raise UsageError(
            f"--context {text!r} is no number of tokens.", "Write it like 32768 or 32k."
        )
    return int(found[1]) * {"": 1, "k": 1024, "m": 1024 * 1024}[found[2]]


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


def _tokens(context: str | None, model: Model) -> int:
    """Tokens of ``--context``, else the default, of a model with fewer its own."""
    from qwen3q.memory.settings import MAX_YARN, longest_context, native_context

    if context is None:
        return min(DEFAULT_CONTEXT, native_context(model.config))
    tokens, longest = parse_context(context), longest_context(model.config)
    if tokens > longest:
        raise UsageError(
            f"--context {context} is beyond YaRN's limit for {model.title}.",
            f"The longest is --context {longest} (--yarn {MAX_YARN:g}).",
        )
    return tokens


def _cpu_experts(text: str | None, model: Model) -> int:
    if text is None:
        return 0
    if text.strip().lower() == "all":
        return model.config.num_hidden_layers
    if not text.strip().isdigit():
        raise UsageError(
            f"--offload-experts {text!r} is neither a number of layers nor all.",
            f"Give 0 to {model.config.num_hidden_layers}, or all.",
        )
    return int(text)


def _one(
    model: Model,
    fmt: str,
    settings: Settings,
    gpus: list[Gpu],
    notes: list[str],
    kv: str | None,
    engine: Engine | None,
    json_output: bool,
) -> None:
    from qwen3q.memory.advice import advise
    from qwen3q.memory.tables import model_table

    def run(on: list[Gpu]) -> list[Estimate]:
        rows = model_table(
            model, [fmt], [settings.context], settings, on, kv=kv, engine=engine,
            find_max_context=True,
        )  # fmt: skip
        return list(rows[0].estimates)

    [found] = run(gpus)
    advice = advise(model, found, gpus)
    if json_output:
        from qwen3q.memory.gpus import gpus as catalog
        from qwen3q.memory.schema import estimate_json, gpus_json

        print_json(
            {
                "estimates": [estimate_json(found, advice)],
                "gpus": gpus_json(model.config, run([]), catalog()),
                "notes": notes,
            }
        )
        return
    from qwen3q.cli.estimate_text import show_estimate

    show_estimate(model, found, advice, notes)


def _table(
    model: Model,
    settings: Settings,
    gpus: list[Gpu],
    notes: list[str],
    kv: str | None,
    engine: Engine | None,
    one_context: bool,
    json_output: bool,
) -> None:
    from qwen3q.memory.tables import CONTEXTS, model_table

    contexts = [settings.context] if one_context else list(CONTEXTS)
    rows = model_table(
        model, model.formats(), contexts, settings, gpus, kv=kv, engine=engine,
        find_max_context=bool(gpus),
    )  # fmt: skip
    if json_output:
        from qwen3q.memory.gpus import gpus as catalog
        from qwen3q.memory.schema import estimate_json, gpus_json

        anywhere = rows if not gpus else model_table(
            model, model.formats(), contexts, settings, [], kv=kv, engine=engine
        )  # fmt: skip
        runs = [run for row in anywhere for run in row.estimates]
        print_json(
            {
                "estimates": [estimate_json(run) for row in rows for run in row.estimates],
                "gpus": gpus_json(model.config, runs, catalog()),
                "notes": notes,
            }
        )
        return
    from qwen3q.cli.estimate_text import show_table

    show_table(model, rows, gpus, notes)
