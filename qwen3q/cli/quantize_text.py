"""What ``qwen3q quantize`` says before the work: engines, groups, splits, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3q.cli.output import format_bytes, note

if TYPE_CHECKING:
    from qwen3q.models.source import ModelSource
    from qwen3q.plan.engines import Engines, Legality
    from qwen3q.plan.job import QuantizeJob
    from qwen3q.plan.targets import Target
    from qwen3q.quantize.footprint import Footprint


def legality_of(source: ModelSource, targets: Sequence[Target]) -> list[Legality]:
    """What is known of the targets that are safetensors folders, in their order."""
    from qwen3q.plan.engines import legality
    from qwen3q.plan.schemes import Scheme
    from qwen3q.quantize.local_plan import source_dtypes

    schemes = [target for target in targets if isinstance(target, Scheme)]
    dtypes = source_dtypes(source) if schemes else {}
    return [legality(scheme, source.config, dtypes=dtypes) for scheme in schemes]


def show_legality(known: Sequence[Legality]) -> None:
    """A block per format, on stderr: who loads it, its groups, over how many GPUs it splits."""
    for legality in known:
        note("\n  ".join(_lines(legality)))


def show_matrix(imatrix: Path | None, job: QuantizeJob) -> None:
    """Where GGUF files take their importance from, should a calibration be run too."""
    if imatrix is not None and job.calibrates:
        note(f"The GGUF files take their importance from {imatrix}, not from the calibration.")


def show_overrides(job: QuantizeJob) -> None:
    """That exceptions by tensor are not for GGUF files, should a recipe have both."""
    if job.has_gguf and job.has_overrides:
        note("The recipe's overrides are for the folders: GGUF files keep the mix of their type.")


def show_missing_template(source: ModelSource) -> None:
    """That what is made can't be talked with, should the model's folder have no chat template."""
    from qwen3q.models.json_files import read_optional
    from qwen3q.models.tokenizer import read_chat_template

    if source.folder is None:
        return
    config = read_optional(source.folder / "tokenizer_config.json")
    if read_chat_template(source.folder, config) is None:
        note(
            f"{source.title} has no chat template, neither as chat_template.jinja nor in "
            "tokenizer_config.json: what is made of it can't be talked with."
        )


def legality_json(legality: Legality) -> dict[str, Any]:
    """The same for scripts; ``transformers`` lists packages it needs, or is null."""
    engines = legality.engines
    return {
        "format": legality.scheme.name,
        "vllm": engines.vllm,
        "transformers": None if engines.transformers is None else list(engines.transformers),
        "gptqmodel": engines.gptqmodel,
        "notes": list(engines.notes),
        "groups": [
            {"role": g.role, "in_features": g.in_features, "group_size": g.group_size}
            for g in legality.groups
        ],
        "tensor_parallel": [
            {
                "size": split.parallel.size,
                "legal": split.parallel.is_legal,
                "reason": split.parallel.reason,
                "legal_group_size": split.legal_group_size,
            }
            for split in legality.splits
        ],
    }


def show_predicted(predicted: Footprint | None) -> None:
    """What the process will take at most, on stderr."""
    if predicted is None:
        return
    rest = predicted.total - predicted.activations
    note(
        f"Peak memory of the process, predicted: {format_bytes(predicted.total)} "
        f"({format_bytes(predicted.activations)} of it activations, {format_bytes(rest)} for "
        f"{predicted.stage})."
    )


def show_measured(predicted: Footprint | None) -> None:
    """What the process took at most beside what was predicted, on stderr."""
    from qwen3q.process_memory import peak_since_start

    if predicted is not None:
        measured, total = format_bytes(peak_since_start()), format_bytes(predicted.total)
        note(f"Peak memory of the process: {measured}; predicted: {total}.")


def memory_json(predicted: Footprint | None) -> dict[str, Any]:
    """Both in bytes, and the prediction by part."""
    from dataclasses import asdict

    from qwen3q.process_memory import peak_since_start

    return {
        "peak_bytes": peak_since_start(),
        "predicted_bytes": predicted.total if predicted else None,
        "predicted": asdict(predicted) | {"slack": predicted.slack} if predicted else None,
    }


def _lines(legality: Legality) -> Iterator[str]:
    yield f"{legality.scheme.name}: {_loaded_by(legality.engines)}."
    if legality.groups:
        parts = (f"{g.role} {g.in_features} / {g.group_size} = {g.count}" for g in legality.groups)
        yield f"Groups, in_features / group size: {', '.join(parts)}."
    legal = [str(split.parallel.size) for split in legality.splits if split.parallel.is_legal]
    gpus = "GPU" if legal == ["1"] else "GPUs"
    yield f"Tensor parallel over {', '.join(legal)} {gpus} is legal."
    for split in legality.splits:
        if not split.parallel.is_legal:
            group = split.legal_group_size
            way = f" --group-size {group} would be legal." if group is not None else ""
            yield f"Not over {split.parallel.size}: {split.parallel.reason}.{way}"
    yield from legality.engines.notes


def _loaded_by(engines: Engines) -> str:
    names = ["vLLM"] if engines.vllm else []
    if engines.transformers is not None:
        needs = f" (with {', '.join(engines.transformers)})" if engines.transformers else ""
        names.append(f"transformers{needs}")
    names += ["gptqmodel"] if engines.gptqmodel else []
    return f"loaded by {', '.join(names) or 'no engine that is known'}"
