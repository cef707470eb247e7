"""One call from names to a report: fidelity, and the gate and speed where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3q.evaluate.artefact import Artefact, find_artefact
from qwen3q.evaluate.backends import BackendOptions
from qwen3q.evaluate.card import update_card
from qwen3q.evaluate.gate_run import GateOptions, run_gate
from qwen3q.evaluate.measure import TextOptions, measure_fidelity
from qwen3q.evaluate.report import run_report, write_report
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.windows import DocumentWindows
from qwen3q.progress import ProgressFn, silent


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What is measured.

    Attributes:
        gate: None asks no questions.
        speed: None times nothing; only GGUF files are timed.
        out: folder for reports and the reference's logits; None writes nothing.
        cards: put the figures into the model cards of artefacts that are folders.
        command: the words of the call, for the report.
        offline: only what is downloaded.
    """

    text: TextOptions
    backend: BackendOptions
    gate: GateOptions | None = None
    speed: SpeedOptions | None = None
    out: Path | None = None
    cards: bool = False
    command: tuple[str, ...] = ()
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``report`` as ``report.json`` holds it, and the files that were written."""

    report: dict[str, Any]
    written: tuple[Path, ...]


def evaluate(
    reference: str,
    names: Sequence[str],
    text_name: str,
    text: str | DocumentWindows,
    options: EvaluationOptions,
    progress: ProgressFn = silent,
) -> Evaluation:
    """Measures the artefacts ``names`` against the float model ``reference``.

    Raises:
        Qwen3qError: a model is missing, broken or does not fit the reference.
    """
    model = find_artefact(reference, offline=options.offline, progress=progress)
    unique = dict.fromkeys(names)
    artefacts = [find_artefact(n, offline=options.offline, progress=progress) for n in unique]
    run = measure_fidelity(
        model, artefacts, text, options.text, options.backend, out=options.out, progress=progress
    )
    report = run_report(run, text_name, options.command)
    if options.gate is not None:
        report["gate"] = run_gate(model, artefacts, options.gate, options.backend, progress)
    if options.speed is not None:
        report["speed"] = [
            row
            for artefact in (model, *artefacts)
            if artefact.is_gguf
            for row in _speed(artefact, options.speed, options.backend.gpu_layers, progress)
        ]
    written = write_report(report, options.out) if options.out is not None else []
    for artefact in artefacts if options.cards else ():
        if not artefact.is_gguf:
            card = artefact.path / "README.md"
            update_card(card, report, artefact.name)
            written.append(card)
    return Evaluation(report, tuple(written))


def _speed(
    artefact: Artefact, options: SpeedOptions, gpu_layers: int, progress: ProgressFn
) -> list[dict[str, Any]]:
    from qwen3q.evaluate.speed import measure_speed, speed_row
    from qwen3q.llama.model import LlamaModel, LoadOptions

    facts = {
        "run": 0,
        "artefact": artefact.name,
        "format": artefact.format,
        "file_bytes": artefact.file_bytes,
    }

    def report(done: int, total: int, _: str) -> None:
        progress(done, total, f"{artefact.name}: speed")

    with LlamaModel(artefact.path, LoadOptions(gpu_layers=gpu_layers)) as model:
        return [facts | speed_row(test) for test in measure_speed(model, options, report)]
