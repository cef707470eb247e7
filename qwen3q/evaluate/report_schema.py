"""What a ``report.json`` holds, as far as reports are drawn and merged from it.

Other keys may stand beside these; docs/evaluation.md names all that ``qwen3q eval`` writes.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Spread = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Large = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A perplexity, which of a broken model is anything that a float holds."""
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class Text(_Part):
    name: str
    sha256: str


class Reference(_Part):
    """The float model, and how it was read."""

    artefact: str
    format: str
    file_bytes: Count
    perplexity: Large
    perplexity_stderr: Large
    tokens: Count
    chunks: Count
    context: Count
    first: Count
    tokenizer: str = ""
    logits_bytes: Count = 0
    seconds: Number = 0
    backend: dict[str, Any] | None = None


class Run(_Part):
    """One call of ``qwen3q eval``."""

    created: str
    qwen3q: str
    command: list[str]
    machine: dict[str, Any]
    text: Text
    reference: Reference
    notes: list[str] = []


class _Row(_Part):
    """What every row begins with; ``run`` is its place among the runs."""

    run: Count
    artefact: str
    format: str
    file_bytes: Count | None


class Result(_Row):
    """Fidelity of one artefact; figures that an endpoint can't give are null."""

    bits_per_weight: Number | None
    perplexity: Large | None
    perplexity_stderr: Large | None
    kl_mean: Number | None
    kl_mean_stderr: Spread | None
    kl_median: Number | None = None
    kl_median_stderr: Spread | None = None
    kl_p99: Number | None
    kl_p99_stderr: Spread | None = None
    kl_p999: Number | None = None
    kl_p999_stderr: Spread | None = None
    kl_max: Number | None = None
    log_perplexity_ratio: Number | None = None
    log_perplexity_ratio_stderr: Spread | None = None
    probability_rms: Number | None = None
    probability_rms_stderr: Spread | None = None
    top1: Number | None
    top1_stderr: Spread | None = None
    missing: dict[str, str] = {}
    layer_errors: dict[str, dict[str, Number]] = {}

    @model_validator(mode="after")
    def _has_error(self) -> Self:
        if (self.kl_mean is None) != (self.kl_mean_stderr is None):
            raise ValueError("kl_mean and kl_mean_stderr go together")
        return self


class Interval(_Part):
    mean: Number
    low: Number
    high: Number


class OfKind(_Part):
    asked: Count
    right: Count


class Gate(_Row):
    """Replies of one model in one mode to one set of questions."""

    mode: str
    set: str = "questions"
    rope: str = "own"
    needle_words: Count = 0
    verdict: str
    questions: Count
    replies: Count | None = None
    right: Count
    by_kind: dict[str, OfKind] = {}
    flaws: dict[str, Count]
    thinking_tokens: Number
    change: Interval | None = None
    flaw_change: Interval | None = None
    thinking_change: Interval | None = None


class Task(_Row):
    """One metric of one task."""

    task: str
    metric: str
    filter: str
    value: Number
    stderr: Spread | None = None
    fewshot: Count | None = None
    questions: Count | None = None
    change: Number | None = None
    change_stderr: Spread | None = None


class Percentiles(_Part):
    p50: Number
    p95: Number
    p99: Number


class PredictedSpeed(_Part):
    tokens_per_second: Number | None = None
    band: Number | None = None
    bound_tokens_per_second: Number | None = None

    @model_validator(mode="after")
    def _has_band(self) -> Self:
        if (self.tokens_per_second is None) != (self.band is None):
            raise ValueError("tokens_per_second and band go together")
        return self


class Speed(_Row):
    """One test: a phase at a length, a depth and a batch."""

    engine: str = "llama.cpp"
    phase: str
    tokens: Count
    depth: Count
    batch: Count = 1
    repeats: Count = 1
    tokens_per_second: Number
    tokens_per_second_stddev: Spread
    first_token_ms: Number | None = None
    latency_ms: Percentiles | None = None
    joules_per_token: Number | None = None
    predicted: PredictedSpeed | None = None

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        if self.first_token_ms is None and self.latency_ms is None:
            raise ValueError("neither first_token_ms nor latency_ms")
        return self


class MemoryParts(_Part):
    weights_bytes: Count | None = None
    kv_bytes: Count | None = None
    compute_bytes: Count | None = None
    rest_bytes: Count | None = None


class Memory(_Row, MemoryParts):
    """Bytes on one device."""

    engine: str
    device: str
    context: Count
    batch: Count
    predicted: MemoryParts | None = None


class Streaming(_Row):
    """One endpoint under so many clients."""

    concurrency: Count
    requests: Count
    failed: Count
    failures: dict[str, Count]
    prompt_tokens: Count
    prompt_tokens_read: Count | None
    generate: Count
    generated_tokens: Count
    tokens_per_second: Number | None
    request_tokens_per_second: Number | None
    first_token_ms: Percentiles | None
    between_ms: Percentiles | None


class Report(_Part):
    """A whole file."""

    schema_: str = Field(alias="schema")
    runs: list[Run] = Field(min_length=1)
    results: list[Result] = []
    gate: list[Gate] = []
    tasks: list[Task] = []
    speed: list[Speed] = []
    memory: list[Memory] = []
    streaming: list[Streaming] = []


SECTIONS = tuple(Report.model_fields)[2:]
"""The kinds of rows."""


def first_fault(report: Any) -> str | None:
    """What is wrong with a report: ``speed.3.depth is 'x': Input should be ...``; or None."""
    try:
        found = Report.model_validate(report)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        value = "absent" if fault["type"] == "missing" else f"{fault['input']!r:.60}"
        return f"{place} is {value}: {fault['msg']}"
    for section in SECTIONS:
        for number, row in enumerate(getattr(found, section)):
            if row.run >= len(found.runs):
                return f"{section}.{number}.run is {row.run}, of {len(found.runs)} runs"
    return None
