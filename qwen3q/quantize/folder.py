"""Quantizes a model into safetensors folders: many schemes, one calibration, resumable.

Layers come from ``stream.stream_layers``, are solved by ``solve.solve_layer`` and written by
``FolderWork``: a layer is durable before the next one starts. Formats that need no calibration
are packed straight from the weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qwen3q.calibrate.rows import TokenRows
from qwen3q.checkpoint.reader import Checkpoint, check_all_finite
from qwen3q.checkpoint.shards import INDEX_NAME
from qwen3q.errors import CheckpointError, UsageError, telling
from qwen3q.files import partial_path, require_free_space, sole_writer
from qwen3q.fingerprint import rows_fingerprint, weights_fingerprint
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.plan.schemes import Scheme
from qwen3q.process_memory import peak_since_start
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.arithmetic import arithmetic_name, workload_of
from qwen3q.quantize.artefact import (
    FolderJob,
    artefact_name,
    checksums,
    is_published,
    publish,
    require_target,
    require_writable,
    write_side_files,
)
from qwen3q.quantize.folder_work import FolderWork
from qwen3q.quantize.footprint import Footprint, predict_peak
from qwen3q.quantize.importance import ImportanceStore
from qwen3q.quantize.job_fingerprint import job_fingerprint
from qwen3q.quantize.journal import OUTSIDE, unit_name
from qwen3q.quantize.local_plan import copied_files, float_dtypes, plan_local
from qwen3q.quantize.names import CONFIG_NAME
from qwen3q.quantize.solve import SolvedLayer, SolveOptions, solve_layer
from qwen3q.quantize.stream import StreamOptions, stream_layers
from qwen3q.quantize.team import torch_threads
from qwen3q.quantize.weights_only import pack_unit, unsolved_units
from qwen3q.threads import worthwhile_threads


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run goes; none of it changes an artefact.

    Attributes:
        resume: continue what an earlier run left.
        replace: replace folders that exist, and drop what an earlier run left.
        stream: devices, memory and work folder of the layer stream.
    """

    resume: bool = False
    replace: bool = False
    stream: StreamOptions = field(default_factory=StreamOptions)


@dataclass(frozen=True, slots=True)
class FolderResults:
    """What a run made.

    Attributes:
        folders: one per job, in their order.
        seconds: wall time of this run.
        importance: mean squared inputs of every linear, where they were asked for; to be
            discarded when they are used.
    """

    folders: tuple[Path, ...]
    seconds: float
    importance: ImportanceStore | None = None


def folder_jobs(
    source: ModelSource,
    checkpoint: Checkpoint,
    schemes: Sequence[Scheme],
    out: Path,
    options: SolveOptions | None = None,
) -> list[FolderJob]:
    """Plans one folder per scheme, ``out/TITLE-SUFFIX``; reads no weight.

    Raises:
        ModelError: the checkpoint's tensors are not those of its config.
        UsageError: a weight that is no float, a scheme that can't be written or does not fit, or
            two with one name.
    """
    dtypes = float_dtypes(checkpoint)
    jobs: list[FolderJob] = []
    for scheme in schemes:
        require_writable(scheme)
        plan = plan_local(source, checkpoint, scheme)
        solve = asdict(options or SolveOptions()) if scheme.is_uniform else {}
        target = out / artefact_name(source.title, scheme)
        if any(job.target == target for job in jobs):
            raise UsageError(
                f"Two formats would both be written to {target}.", "Give each format once."
            )
        jobs.append(FolderJob(scheme, plan, target, dtypes, solve))
    return jobs


def quantize_folders(
    source: ModelSource,
    checkpoint: Checkpoint,
    jobs: Sequence[FolderJob],
    calibration: TokenRows | None = None,
    run: RunOptions | None = None,
    *,
    importance: Path | None = None,
    progress: ProgressFn = silent,
) -> FolderResults:
    """Makes every job's folder in one pass over the model, each appearing when it is complete.

    Args:
        jobs: from ``folder_jobs``.
        calibration: needed by uniform schemes and by ``importance``.
        importance: how the path begins of the folder that mean squared inputs are collected in,
            for GGUF's importance matrix; fingerprints of model and rows are added to it.
        progress: told how far its parts are: checks, packing, layers, checksums.

    Raises:
        UsageError: a target exists, an unfinished run is there or differs, or no calibration.
        CheckpointError: a weight is not finite, or a planned tensor was not made.
        DiskError: too little room, or a target that can't be written or is being written.
    """
    started = time.perf_counter()
    run = run or RunOptions()
    rows = calibration.rows if calibration else ()
    if not rows and (importance or any(job.scheme.is_uniform for job in jobs)):
        raise UsageError("These formats need calibration text.", "Give it with --calibration.")
    predicted = _predicted(source, jobs, rows, run.stream)
    weights = weights_fingerprint(checkpoint)
    store = None
    if importance:
        name = f"{importance.name}{weights}-{rows_fingerprint(rows)}"
        store = ImportanceStore(importance.with_name(name))
    with ExitStack() as stack:
        for job in jobs:
            stack.enter_context(sole_writer(job.target))
        pending = _pending(source, jobs, weights, calibration, run)
        if store or any(job.scheme.is_uniform for job, _ in pending):
            check_all_finite(checkpoint, progress)
        works: list[FolderWork] = []
        with _kept_if_begun(works, store):
            for job, fingerprint in pending:
                work = FolderWork(job, fingerprint, resume=run.resume, replace=run.replace)
                works.append(stack.enter_context(work))
            _pack(source, checkpoint, works, progress)
            _solve_layers(source, checkpoint, works, rows, run.stream, store, progress)
            spent = _spent(time.perf_counter() - started, predicted)
            inputs = _inputs(source, checkpoint, progress) if works else {}
            for work in works:
                _complete(work, source, calibration, run, inputs, spent, progress)
    return FolderResults(
        tuple(job.target for job in jobs),
        time.perf_counter() - started,
        store,
    )


def predicted_peak(
    config: Qwen3Config,
    schemes: int,
    rows: tuple[int, int],
    stream: StreamOptions,
) -> Footprint | None:
    """What the process will take at most; None where layers lie in a GPU's memory.

    Args:
        schemes: how many are solved.
        rows: calibration rows, and tokens of each.
    """
    device = stream.devices[0]
    if device.partition(":")[0] != "cpu":
        return None
    return predict_peak(config, schemes, workload_of(config, device, *rows), stream.memory_bytes)


def _pending(
    source: ModelSource,
    jobs: Sequence[FolderJob],
    weights: str,
    calibration: TokenRows | None,
    run: RunOptions,
) -> list[tuple[FolderJob, dict[str, str]]]:
    """The jobs still to be made and their fingerprints; refuses what stands in the way."""
    pending = []
    for job in jobs:
        fingerprint = job_fingerprint(source, weights, job, calibration, run.stream)
        begun = run.resume and job.journal.exists() and partial_path(job.target).exists()
        if run.resume and not begun and is_published(job, fingerprint):
            job.journal.unlink(missing_ok=True)
            continue
        # Where both a folder and work for it are there, that work was begun to replace it.
        require_target(job.target, replace=run.replace or begun)
        pending.append((job, fingerprint))
    fresh = [job for job, _ in pending if not (run.resume and partial_path(job.target).exists())]
    if fresh:
        require_free_space(fresh[0].target.parent, sum(job.plan.file_bytes for job in fresh))
    return pending


def _pack(
    source: ModelSource, checkpoint: Checkpoint, works: Sequence[FolderWork], progress: ProgressFn
) -> None:
    """Makes what needs no solver."""
    units = [(work, unit) for work in works for unit in unsolved_units(work)]
    threads = worthwhile_threads(torch.get_num_threads(), source.config.hidden_size)
    with torch_threads(threads):
        for done, (work, unit) in enumerate(units):
            progress(done, len(units), "packing")
            pack_unit(work, unit, checkpoint)
    if units:
        progress(len(units), len(units), "packing")


def _solve_layers(
    source: ModelSource,
    checkpoint: Checkpoint,
    works: Sequence[FolderWork],
    rows: Sequence[Sequence[int]],
    stream: StreamOptions,
    store: ImportanceStore | None,
    progress: ProgressFn,
) -> None:
    """Runs the layers that some scheme or the importance matrix still lacks."""
    layers = source.config.num_hidden_layers
    solving = {work.job.scheme: work for work in works if work.missing}
    firsts = [work.first_missing_layer(layers) for work in solving.values()]
    if store is not None:
        firsts.append(store.first_missing_layer(layers))
    start = min(firsts, default=layers)
    if start == layers:
        return

    options = {scheme: SolveOptions(**work.job.options) for scheme, work in solving.items()}
    strides = [chosen.float_stride(scheme) for scheme, chosen in options.items()]
    made_on = arithmetic_name(stream.devices[0])

    def restore(layer: int, scheme: Scheme) -> SolvedLayer:
        return solving[scheme].restore(layer, checkpoint)

    with (
        _scratch(works, store, stream) as stream,
        closing(
            stream_layers(
                checkpoint,
                source.config,
                rows,
                list(solving),
                stream,
                float_stride=1 if store is not None else min(filter(None, strides), default=None),
                importance=store is not None,
                start=start,
                restore=restore,
                progress=progress,
            )
        ) as streamed,
    ):
        for layer in streamed:
            if store is not None:
                store.save(layer.index, layer.moments)
            for scheme, work in solving.items():
                if work.is_done(unit_name(layer.index)):
                    layer.keep(scheme, restore(layer.index, scheme))
                    continue
                solved = solve_layer(layer, scheme, options[scheme])
                report = [asdict(row) for row in solved.report]
                tensors = work.packed(solved, layer.index, checkpoint)
                unit = unit_name(layer.index)
                work.finish_unit(unit, tensors.items(), report, solved.notes, made_on)
                del tensors
                layer.keep(scheme, solved)


@contextmanager
def _scratch(
    works: Sequence[FolderWork], store: ImportanceStore | None, stream: StreamOptions
) -> Iterator[StreamOptions]:
    """Stream options with a work folder of this job's own; what a killed run left is removed."""
    owner = works[0].job.target if works else store.folder if store else Path("qwen3q")
    folder = (stream.work_folder or owner.parent) / f".{owner.name.lstrip('.')}.activations"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield replace(stream, work_folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _predicted(
    source: ModelSource,
    jobs: Sequence[FolderJob],
    rows: Sequence[Sequence[int]],
    stream: StreamOptions,
) -> Footprint | None:
    solved = sum(job.scheme.is_uniform for job in jobs)
    shape = (len(rows), len(rows[0])) if rows else (0, 1)
    return predicted_peak(source.config, solved, shape, stream)


def _spent(seconds: float, predicted: Footprint | None) -> dict[str, Any]:
    """What a run took, for reports."""
    return {
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_since_start(),
        "predicted_peak_memory_bytes": predicted.total if predicted else None,
        "predicted_activation_bytes": predicted.activations if predicted else None,
    }


def _complete(
    work: FolderWork,
    source: ModelSource,
    calibration: TokenRows | None,
    run: RunOptions,
    inputs: Mapping[str, Mapping[str, Any]],
    spent: Mapping[str, Any],
    progress: ProgressFn,
) -> None:
    """Writes what stands beside the shards and makes the folder appear."""
    if work.missing:
        raise CheckpointError(f"{work.job.target.name}: {work.missing[0]} was not made.")
    used = calibration is not None and work.job.scheme.is_uniform
    write_side_files(
        work.partial,
        work.job,
        source,
        dict(calibration.description) if calibration is not None and used else {},
        work.units,
        {**spent, "resumed": work.resumed},
        inputs,
        work.fingerprint,
        progress,
    )
    publish(work.partial, work.job, replace=run.replace or work.resumed)


def _inputs(
    source: ModelSource, checkpoint: Checkpoint, progress: ProgressFn
) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file of the source that went into the artefacts."""
    assert source.folder is not None
    index = source.folder / INDEX_NAME
    paths = [source.folder / CONFIG_NAME, *copied_files(source.folder), *checkpoint.paths]
    if index.is_file():
        paths.append(index)
    return checksums(sorted(paths), progress, f"checksums of {source.title}")


@contextmanager
def _kept_if_begun(works: Sequence[FolderWork], store: ImportanceStore | None) -> Iterator[None]:
    """On failure, keeps what has a layer to continue from, importance too, and removes the rest."""
    try:
        with telling(lambda: _what_is_kept(works, store)):
            yield
    except BaseException:
        for work in works:
            if not _is_begun(work):
                work.discard()
        if store and not store.is_begun():
            store.discard()
        raise


def _what_is_kept(works: Sequence[FolderWork], store: ImportanceStore | None) -> str:
    begun = [work for work in works if _is_begun(work)]
    if begun:
        return (
            f"The layers that are done are kept beside {begun[0].job.target}: go on with "
            "--resume, or start again with --force."
        )
    return store.what_is_kept() if store else ""


def _is_begun(work: FolderWork) -> bool:
    return any(unit.name != OUTSIDE for unit in work.units)
