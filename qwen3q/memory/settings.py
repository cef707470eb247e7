"""What a run is asked for, and the refusal of what an engine can't do."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from enum import StrEnum

from qwen3q.errors import UsageError
from qwen3q.models.config import Qwen3Config
from qwen3q.models.yarn import MAX_YARN, check_yarn, yarn_base
from qwen3q.plan.gguf_types import GGML_TYPES

DEFAULT_UBATCH = 512
DEFAULT_UTILIZATION = 0.9
HOST_BANDWIDTH = 55e9
"""Bytes per second that a CPU reads weights with: DDR5 in two channels, four measured rows."""
LLAMA_MAX_SEQUENCES = 256
"""Sequences that one context of llama.cpp holds (``llama_max_parallel_sequences``)."""
LLAMA_MAX_GPUS = 16
"""Devices that llama.cpp spreads a model over (``llama_max_devices``)."""


class Engine(StrEnum):
    """Who runs the model."""

    LLAMA_CPP = "llama.cpp"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


KV_TYPES = {
    Engine.LLAMA_CPP: ("f16", "bf16", "f32", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"),
    Engine.VLLM: ("bf16", "f16", "fp8"),
    Engine.TRANSFORMERS: ("bf16", "f16", "f32"),
}
"""Cache types by engine, the default first; llama.cpp, which has most, leads."""

_ELEMENT_BYTES = {"f16": 2, "bf16": 2, "f32": 4, "fp8": 1}
_KV_ALIASES = {
    "auto": "", "fp16": "f16", "float16": "f16", "bfloat16": "bf16", "fp32": "f32",
    "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "q8": "q8_0", "q4": "q4_0", "q5": "q5_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """One run, in the reader's terms.

    Attributes:
        context: tokens of one sequence.
        parallel: sequences at once, each with ``context`` tokens of its own.
        type_k, type_v: of the cache.
        ubatch: tokens of one pass through the graph (llama.cpp's ``-ub``).
        gpu_layers: layers on GPUs, the output layer counted (llama.cpp's ``-ngl``); None for all.
        cpu_experts: layers whose experts stay on the CPU (``--n-cpu-moe``), from the first on.
        yarn: YaRN factor, None for the model's own.
        utilization: share of each GPU that vLLM may take.
        host_bandwidth: bytes per second that the CPU beside GPUs decodes its part with.
    """

    context: int
    parallel: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    ubatch: int = DEFAULT_UBATCH
    flash_attention: bool = True
    gpu_layers: int | None = None
    cpu_experts: int = 0
    yarn: float | None = None
    utilization: float = DEFAULT_UTILIZATION
    host_bandwidth: float = HOST_BANDWIDTH

    def at(self, context: int) -> Settings:
        """The same run with another context."""
        return replace(self, context=context)


def kv_types(text: str | None, engine: Engine) -> tuple[str, str]:
    """Types of K and V out of ``q8_0`` or ``q8_0/q4_0``; the engine's default for None or auto.

    Raises:
        UsageError: a type that the engine's cache does not have; names the nearest.
    """
    known = KV_TYPES[engine]
    halves = ("auto" if text is None else text).strip().lower().split("/")
    most = 2 if engine is Engine.LLAMA_CPP else 1
    if len(halves) > most or "" in halves:
        raise UsageError(
            f"--kv {text!r} is no cache type of {engine}.", f"One of: {', '.join(known)}."
        )
    found = []
    for half in halves:
        name = _KV_ALIASES.get(half, half) or known[0]
        if name not in known:
            raise UsageError(
                f"--kv {text}: {engine} can't keep its cache in {half}{_why_not(name)}.",
                f"Nearest: {_nearest(name, known)}. It takes {', '.join(known)}.",
            )
        found.append(name)
    return found[0], found[-1]


def check_kv(text: str | None) -> None:
    """Refuses cache types that no engine has, with those of llama.cpp, which has most.

    Raises:
        UsageError: names the nearest.
    """
    refusals = []
    for engine in KV_TYPES:
        try:
            kv_types(text, engine)
        except UsageError as error:
            refusals.append(error)
    if len(refusals) == len(KV_TYPES):
        raise refusals[0]


def check_settings(
    config: Qwen3Config, fmt: str, settings: Settings, engine: Engine, gpus: int
) -> None:
    """Refuses a run that the engine would refuse.

    Raises:
        UsageError: one sentence, and the nearest legal choice.
    """
    check_context(config, settings)
    if engine is Engine.LLAMA_CPP:
        if gpus > LLAMA_MAX_GPUS:
            raise UsageError(
                f"llama.cpp spreads a model over at most {LLAMA_MAX_GPUS} GPUs, not {gpus}.",
                f"Give {LLAMA_MAX_GPUS} or fewer, or a format that vLLM runs: --quant awq:int4.",
            )
        _check_llama(config, settings)
    if engine is Engine.VLLM and gpus > 1:
        check_tensor_parallel(config, fmt, gpus)


def native_context(config: Qwen3Config) -> int:
    """Positions without YaRN, of one sequence."""
    if config.yarn is not None:
        return config.yarn.original_max_position_embeddings
    return config.max_position_embeddings


def longest_context(config: Qwen3Config) -> int:
    """Positions with YaRN at the largest factor that Qwen3 was validated for."""
    native = native_context(config)
    return max(native, int(yarn_base(native) * MAX_YARN))


def reach(config: Qwen3Config, yarn: float | None) -> int:
    """The longest context with YaRN at factor ``yarn``, at the largest for None or no legal one."""
    if yarn is None or not 1.0 < yarn <= MAX_YARN:
        return longest_context(config)
    return min(longest_context(config), int(yarn_base(native_context(config)) * yarn))


def needed_yarn(config: Qwen3Config, context: int) -> float | None:
    """The YaRN factor that ``context`` needs, or None where the model has it by itself."""
    native = native_context(config)
    if context <= native:
        return None
    factor = context / yarn_base(native)
    return next(step for step in (2.0, 3.0, MAX_YARN) if factor <= step)


def check_context(config: Qwen3Config, settings: Settings) -> None:
    """Refuses a context beyond what positions reach."""
    longest = longest_context(config)
    if settings.context < 1:
        raise UsageError(f"A context of {settings.context} tokens holds nothing.")
    if settings.yarn is not None:
        check_yarn(settings.yarn)
    if settings.context > longest:
        raise UsageError(
            f"A context of {settings.context:,} is beyond YaRN's limit for this model.",
            f"The longest is --context {longest} (--yarn {MAX_YARN:g}).",
        )
    most = reach(config, settings.yarn)
    if settings.yarn is not None and settings.context > most:
        raise UsageError(
            f"--yarn {settings.yarn:g} reaches {most:,} tokens, not {settings.context:,}.",
            f"Take --yarn {needed_yarn(config, settings.context) or MAX_YARN:g} "
            f"or --context {most}.",
        )


def check_tensor_parallel(config: Qwen3Config, fmt: str, gpus: int) -> None:
    """Refuses a number of GPUs that vLLM can't split this model in this format over."""
    reason = _split_reason(config, fmt, gpus)
    if reason:
        legal = [n for n in (1, 2, 4, 8, 16, 32, 64) if not _split_reason(config, fmt, n)]
        near = [n for n in legal if n < gpus][-1:] + [n for n in legal if n > gpus][:1]
        raise UsageError(
            f"{gpus} GPUs can't share {fmt} by tensor parallelism: {reason}.",
            f"Nearest: {' or '.join(map(str, near))} GPU{'s' * (near != [1])}.",
        )


def _split_reason(config: Qwen3Config, fmt: str, gpus: int) -> str:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % gpus:
        return f"{heads} attention heads do not divide by {gpus}"
    if kv_heads % gpus and gpus % kv_heads:
        return f"{kv_heads} key-value heads do not divide by {gpus}"
    from qwen3q.plan.schemes import parse_scheme, scheme_names
    from qwen3q.plan.tensor_parallel import tensor_parallel_legality

    if fmt not in scheme_names():
        return ""
    [legality] = tensor_parallel_legality(config, parse_scheme(fmt), (gpus,))
    return legality.reason


def row_bytes(kind: str, elements: int) -> int:
    """Bytes of one row of a cache."""
    if kind in _ELEMENT_BYTES:
        return elements * _ELEMENT_BYTES[kind]
    return GGML_TYPES[kind.upper()].row_bytes(elements)


def is_quantized(kind: str) -> bool:
    return kind not in _ELEMENT_BYTES


def _check_llama(config: Qwen3Config, settings: Settings) -> None:
    if is_quantized(settings.type_v) and not settings.flash_attention:
        raise UsageError(
            f"llama.cpp can't keep V in {settings.type_v} without flash attention.",
            f"Leave --no-flash-attn out, or take --kv {settings.type_k}/f16.",
        )
    for kind in (settings.type_k, settings.type_v):
        block = GGML_TYPES[kind.upper()].block_size
        if config.head_dim % block:
            raise UsageError(
                f"{kind} has blocks of {block}, and head_dim {config.head_dim} does not divide "
                "into them.",
                "Take --kv f16.",
            )
    if settings.cpu_experts and not config.is_moe:
        raise UsageError(
            "--offload-experts is for mixture-of-experts models, and this one is dense.",
            "Keep some layers on the CPU instead: --gpu-layers.",
        )
    if not 0 <= settings.cpu_experts <= config.num_hidden_layers:
        raise UsageError(
            f"--offload-experts {settings.cpu_experts}: "
            f"the model has {config.num_hidden_layers} layers.",
            f"Give 0 to {config.num_hidden_layers}, or all.",
        )
    if settings.parallel > LLAMA_MAX_SEQUENCES:
        raise UsageError(
            f"--parallel {settings.parallel}: llama.cpp holds at most {LLAMA_MAX_SEQUENCES} "
            "sequences at once.",
            f"Give --parallel {LLAMA_MAX_SEQUENCES}, or a format that vLLM runs: --quant awq:int4.",
        )


def _why_not(name: str) -> str:
    if name.upper() in GGML_TYPES and GGML_TYPES[name.upper()].block_size == 256:
        return ": its blocks of 256 are longer than a head"
    return ""


def _nearest(name: str, known: tuple[str, ...]) -> str:
    if name.startswith("q") and "fp8" in known:
        return "fp8"
    same_bits = [kind for kind in known if kind.startswith(name[:2])]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return (same_bits or close or [known[0]])[0]
