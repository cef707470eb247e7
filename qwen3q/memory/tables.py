"""One table of a model: every quantization at several contexts, with the GPUs that hold each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from qwen3q.errors import UsageError
from qwen3q.memory.estimate import (
    Estimate,
    Verdict,
    default_engine,
    estimate,
    on_single_gpus,
    only_engine,
    reads,
)
from qwen3q.memory.gpus import Gpu, gpus
from qwen3q.memory.settings import Engine, Settings, check_kv, kv_types, reach
from qwen3q.memory.source import Model
from qwen3q.memory.weights import Weights

CONTEXTS = (1024, 8192, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class Row:
    """One quantization: an estimate per context."""

    weights: Weights
    estimates: tuple[Estimate, ...]


def model_table(
    model: Model,
    formats: Sequence[str],
    contexts: Sequence[int],
    settings: Settings,
    on: Sequence[Gpu],
    *,
    kv: str | None = None,
    engine: Engine | None = None,
    find_max_context: bool = False,
) -> list[Row]:
    """Estimates every format at every context that the model reaches; formats it does not fit are
    left out.

    Args:
        on: the GPUs to run on, or a processor alone; empty for a GPU of unknown size.
        kv: cache type; each engine's default if None.
        engine: only what this engine runs; each format's own if None.

    Raises:
        UsageError: nothing is left, with the reason of the first one.
    """
    if len(formats) > 1:
        engine = engine or only_engine(on)
        if engine is None:
            check_kv(kv)
        else:
            formats = [fmt for fmt in formats if reads(model.config, fmt, engine)]
    most = reach(model.config, settings.yarn)
    reachable = [context for context in contexts if context <= most]
    rows = []
    refusal: UsageError | None = None
    for fmt in formats:
        try:
            stored = model.stored
            weights = stored if stored and stored.format == fmt else model.weights(fmt)
            runner = engine or default_engine(fmt)
            type_k, type_v = kv_types(kv, runner)
            runs = tuple(
                estimate(
                    model.title, model.config, weights, runner,
                    replace(settings, context=context, type_k=type_k, type_v=type_v), on,
                    find_max_context=find_max_context,
                )
                for context in reachable or contexts
            )  # fmt: skip
        except UsageError as error:
            refusal = refusal or error
            continue
        rows.append(Row(weights, runs))
    if not rows and refusal is not None:
        raise refusal
    return rows


@cache
def size_classes() -> dict[int, list[Gpu]]:
    """Discrete GPUs by nominal memory in GB, smallest first; the one with least usable leads."""
    classes: dict[int, list[Gpu]] = {}
    for gpu in sorted(gpus(), key=lambda gpu: gpu.usable_bytes):
        if not gpu.shares_host_memory:
            classes.setdefault(round(gpu.memory_bytes / (1 << 30)), []).append(gpu)
    return dict(sorted(classes.items()))


def smallest_class(model: Model, found: Estimate) -> int | None:
    """The smallest of ``size_classes`` whose every GPU holds a run; None if none does."""
    leads = {parts[0].name: size for size, parts in size_classes().items()}
    verdicts = on_single_gpus(found, model.config, (c[0] for c in size_classes().values()))
    holding = (leads[gpu.name] for gpu, verdict, _ in verdicts if verdict is not Verdict.NO)
    return next(holding, None)
