"""One call from names to a report: fidelity, and the gate and speed where they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen3q.errors import OutOfMemoryError, UsageError, telling
from qwen3q.evaluate.artefact import Artefact, endpoint_artefact, find_artefact
from qwen3q.evaluate.backends import BackendOptions, check_generation
from qwen3q.evaluate.card import read_card, update_card
from qwen3q.evaluate.contribute import contribute_rows
from qwen3q.evaluate.endpoint import EndpointOptions
from qwen3q.evaluate.endpoint_backend import no_scores
from qwen3q.evaluate.endpoint_http import EndpointError, is_url
from qwen3q.evaluate.gate_run import GateOptions, check_gate, run_gate
from qwen3q.evaluate.lm_eval_run import HarnessOptions, load_tasks, run_tasks
from qwen3q.evaluate.measure import TextOptions, measure_fidelity
from qwen3q.evaluate.report import machine_facts, run_report, write_report
from qwen3q.evaluate.resume import Kept
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.tokens import open_codec
from qwen3q.evaluate.windows import DocumentWindows
from qwen3q.files import sole_writer
from qwen3q.progress import ProgressFn, silent


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What is measured.

    Attributes:
        gate: None asks no questions.
        gate_decides: without its verdict the call would be worth nothing. Else the gate is left
            out, with a note, where a model takes more memory than there is.
        speed: None times nothing.
        contribute: where rows of speed and memory go that would improve the estimator; None for
            nowhere. What an earlier call measured was contributed then.
        tasks: None runs no tasks of lm-evaluation-harness.
        out: folder for reports and the reference's logits; None writes nothing.
        cards: put the figures into the model cards of artefacts that are folders.
        command: the words of the call, for the report.
        offline: only what is downloaded.
        resume: take from ``out`` what an interrupted call measured there.
        endpoint: how artefacts that are URLs are asked.
    """

    text: TextOptions
    backend: BackendOptions
    gate: GateOptions | None = None
    gate_decides: bool = False
    speed: SpeedOptions | None = None
    contribute: Path | None = None
    tasks: HarnessOptions | None = None
    out: Path | None = None
    cards: bool = False
    command: tuple[str, ...] = ()
    offline: bool = False
    resume: bool = False
    endpoint: EndpointOptions | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one call gave.

    Attributes:
        report: as ``report.json`` holds it.
        written: the reports and cards.
        notes: what was taken from an earlier call, and what not and why.
    """

    report: dict[str, Any]
    written: tuple[Path, ...]
    notes: tuple[str, ...] = ()


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
        UsageError: ``resume`` without a folder.
        Interrupted: by Ctrl-C or a signal; the hint says how to go on from what is kept.
        DiskError: ``out`` can't be written, or another process writes there.
        Qwen3qError: a model is missing, broken or does not fit the reference.
    """
    if options.resume and options.out is None:
        raise UsageError("--resume needs the folder of the earlier call.", "Give its --out.")
    kept = Kept(options.out, resume=options.resume)
    if options.out is None:
        return _evaluate(reference, names, text_name, text, options, kept, progress)
    with sole_writer(options.out / "report.json"), telling(kept.what_is_kept):
        return _evaluate(reference, names, text_name, text, options, kept, progress)


def _evaluate(
    reference: str,
    names: Sequence[str],
    text_name: str,
    text: str | DocumentWindows,
    options: EvaluationOptions,
    kept: Kept,
    progress: ProgressFn,
) -> Evaluation:
    model = find_artefact(reference, offline=options.offline, progress=progress)
    unique = dict.fromkeys(names)
    artefacts = _told_apart(
        [
            endpoint_artefact(name, model, options.endpoint)
            if is_url(name)
            else find_artefact(name, offline=options.offline, progress=progress)
            for name in unique
        ]
    )
    if not any((options.gate, options.speed, options.tasks)):
        for artefact in artefacts:
            _require_scores(artefact)
    for artefact in artefacts if options.cards else ():
        if not artefact.is_gguf and artefact.endpoint is None:
            read_card(artefact.path / "README.md")
    harness = load_tasks(options.tasks, artefacts) if options.tasks is not None else None
    gate = _possible_gate(model, artefacts, options, kept)
    run = measure_fidelity(
        model,
        artefacts,
        text,
        options.text,
        options.backend,
        out=options.out,
        kept=kept,
        progress=progress,
    )
    report = run_report(run, text_name, options.command)
    if gate is not None:
        report["gate"] = run_gate(model, artefacts, gate, options.backend, progress, kept=kept)
    if options.tasks is not None and harness is not None:
        report["tasks"] = run_tasks(
            model, artefacts, options.tasks, harness, options.backend, progress, kept=kept
        )
    if options.speed is not None:
        timed = (artefact for artefact in (model, *artefacts) if artefact.endpoint is None)
        files = list({artefact.path: artefact for artefact in timed}.values())
        _add_speed(report, files, options, options.speed, kept, progress)
        _add_streaming(report, artefacts, options.speed, progress)
    written = write_report(report, options.out) if options.out is not None else []
    for artefact in artefacts if options.cards else ():
        if artefact.is_gguf or artefact.endpoint is not None:
            kept.notes.append(f"{artefact.name} is no folder, so it has no card to update.")
            continue
        card = artefact.path / "README.md"
        update_card(card, report, artefact.name)
        written.append(card)
    return Evaluation(report, tuple(written), tuple(kept.notes))


def _told_apart(artefacts: Sequence[Artefact]) -> list[Artefact]:
    """Files and folders of one name have the folder that they lie in beside it."""
    times = Counter(artefact.name for artefact in artefacts)
    return [
        replace(artefact, name=f"{artefact.name} in {artefact.path.absolute().parent.name}")
        if times[artefact.name] > 1 and artefact.endpoint is None
        else artefact
        for artefact in artefacts
    ]


def _require_scores(artefact: Artefact) -> None:
    """Refuses an endpoint that can't be measured where nothing else is asked of it."""
    if artefact.endpoint is not None and artefact.endpoint.scorer is None:
        raise EndpointError(
            f"{artefact.name}: {no_scores(artefact.endpoint)}.",
            "Ask it questions with --gate, or time it with `qwen3q eval endpoint`.",
        )


def _possible_gate(
    reference: Artefact, artefacts: Sequence[Artefact], options: EvaluationOptions, kept: Kept
) -> GateOptions | None:
    """The gate, unless a model has too little memory to answer and a note will do."""
    if options.gate is None:
        return None
    check_gate(reference, artefacts, options.gate)
    try:
        for artefact in (reference, *artefacts):
            check_generation(artefact, options.backend)
    except OutOfMemoryError as error:
        if options.gate_decides:
            raise
        kept.notes.append(f"{error.message} No questions were asked. {error.hint}")
        return None
    return options.gate


def _add_speed(
    report: dict[str, Any],
    artefacts: Sequence[Artefact],
    options: EvaluationOptions,
    tests: SpeedOptions,
    kept: Kept,
    progress: ProgressFn,
) -> None:
    """Puts ``speed`` and ``memory`` into the report, and what ran them into its run."""
    from qwen3q.evaluate.speed_run import SpeedRun, run_speed

    entry, backend = report["runs"][0], options.backend
    report["speed"], report["memory"] = [], []
    notes = []
    for artefact in artefacts:

        def measure(artefact: Artefact = artefact) -> dict[str, Any]:
            def report_done(done: int, total: int, _: str) -> None:
                progress(done, total, f"{artefact.name}: speed")

            run = run_speed(
                artefact,
                tests,
                gpu_layers=backend.gpu_layers,
                device=backend.device,
                progress=report_done,
            )
            if options.contribute is not None:
                kept.notes += contribute_rows(options.contribute, artefact, run)
            return asdict(run)

        asked = (tests, backend, machine_facts())
        run = SpeedRun(**kept.get(artefact, "speed", asked, measure))
        report["speed"] += run.rows
        report["memory"] += run.memory
        entry["machine"] |= run.machine
        notes += [run.note] if run.note else []
    entry["notes"] = list(dict.fromkeys(notes))


def _add_streaming(
    report: dict[str, Any],
    artefacts: Sequence[Artefact],
    options: SpeedOptions,
    progress: ProgressFn,
) -> None:
    """Puts ``streaming`` into the report if there are endpoints: the longest prompt's clients."""
    from qwen3q.evaluate.streaming import StreamingOptions, stream_endpoint

    rows: list[dict[str, Any]] = []
    for artefact in artefacts:
        if artefact.endpoint is not None:
            clients = StreamingOptions(prompt=max(options.prompts), generate=options.generate)
            rows += stream_endpoint(artefact.endpoint, open_codec(artefact), clients, progress)
    if rows:
        report["streaming"] = rows
