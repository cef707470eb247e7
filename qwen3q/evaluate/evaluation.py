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
        speed: None times nothing.
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
        _add_speed(report, (model, *artefacts), options.speed, options.backend, progress)
    written = write_report(report, options.out) if options.out is not None else []
    for artefact in artefacts if options.cards else ():
        if not artefact.is_gguf:
            card = artefact.path / "README.md"
            update_card(card, report, artefact.name)
            written.append(card)
    return Evaluation(report, tuple(written))


def _add_speed(
    report: dict[str, Any],
    artefacts: Sequence[Artefact],
    options: SpeedOptions,
    backend: BackendOptions,
    progress: ProgressFn,
) -> None:
    """Puts ``speed`` and ``memory`` into the report, and what ran them into its run."""
    from qwen3q.evaluate.speed_run import run_speed

    entry = report["runs"][0]
    report["speed"], report["memory"] = [], []
    notes = []
    for artefact in artefacts:

        def report_done(done: int, total: int, _: str, name: str = artefact.name) -> None:
            progress(done, total, f"{name}: speed")

        run = run_speed(
            artefact,
            options,
            gpu_layers=backend.gpu_layers,
            device=backend.device,
            progress=report_done,
        )
        report["speed"] += run.rows
        report["memory"] += run.memory
        entry["machine"] |= run.machine
        notes += [run.note] if run.note else []
    entry["notes"] = list(dict.fromkeys(notes))
