"""From a model and the names of formats to artefacts on disk: the one call that verbs make."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.devices import best_device
from qwen3q.errors import MissingPackageError, telling
from qwen3q.files import require_free_space, sole_writer
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.formats.imatrix import ImportanceMatrix, read_imatrix
from qwen3q.models.source import ModelSource
from qwen3q.models.tensors import check_tensors
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.job import QuantizeJob
from qwen3q.plan.plan import Plan
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.plan.schemes import Layout, Scheme
from qwen3q.plan.targets import Target, plan_target, target_name
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.artefacts import Artefact
from qwen3q.quantize.checks import check_job, check_targets, require_gguf_targets
from qwen3q.quantize.footprint import Footprint
from qwen3q.quantize.gguf import gguf_file_name, gguf_jobs, write_gguf
from qwen3q.quantize.local_plan import plan_local
from qwen3q.quantize.options import QuantizeOptions, extended, importance_text
from qwen3q.quantize.own_matrix import kept_importance, own_matrix, sole_calibration
from qwen3q.threads import available_threads, calm_openmp

__all__ = [
    "QuantizeOptions",
    "plan_targets",
    "predict_memory",
    "quantize_gguf",
    "quantize_targets",
    "require_room",
]


def plan_targets(
    source: ModelSource,
    targets: Sequence[Target],
    options: QuantizeOptions,
    *,
    calibration: CalibrationRecipe | None = None,
) -> list[Plan]:
    """What each target would be, without reading a weight; exact where the model is on disk.

    Args:
        calibration: the text that GGUF files get an importance matrix from (``importance_text``).

    Raises:
        UsageError: the model does not fit a format.
        ModelError: its tokenizer is broken, its weights are not those of its config, or llama.cpp
            can't run that.
    """
    config = extended(source.config, options)
    imatrix = None
    if options.imatrix is not None:
        imatrix = read_imatrix(options.imatrix, source.config)
    elif calibration is not None:
        imatrix = own_matrix(source.config, calibration)
    plans = []
    has_weights = source.folder is not None and any(source.folder.glob("*.safetensors"))
    for target in targets:
        if isinstance(target, FileType) and source.folder is not None:
            provenance = Provenance(source.title, source.repo, source.revision)
            jobs = gguf_jobs(source.folder, config, provenance, [target], Path(), imatrix=imatrix)
            plans.append(jobs[0].plan)
        elif isinstance(target, Scheme) and has_weights:
            assert source.folder is not None
            with Checkpoint(source.folder) as checkpoint:
                plans.append(plan_local(source, checkpoint, target))
        else:
            has_imatrix = imatrix is not None
            plans.append(plan_target(source.title, config, target, has_imatrix=has_imatrix))
    return plans


def quantize_gguf(
    source: ModelSource,
    file_types: Sequence[FileType],
    out: Path,
    options: QuantizeOptions | None = None,
    *,
    imatrix: ImportanceMatrix | None = None,
    progress: ProgressFn = silent,
) -> list[Artefact]:
    """Writes ``out/TITLE-TYPE.gguf`` for every type in one pass over the weights.

    Args:
        source: resolved, so that its folder is on disk.
        imatrix: importance that is at hand already; else the file that ``options`` names.

    Raises:
        DiskError: a target exists and may not be replaced, or there is too little room.
        Qwen3qError: whatever is wrong with the model, by name.
    """
    options = options or QuantizeOptions()
    assert source.folder is not None
    require_gguf_targets(source, file_types, out, options)
    if options.imatrix:
        imatrix = read_imatrix(options.imatrix, source.config)
    provenance = Provenance(source.title, source.repo, source.revision)
    config = extended(source.config, options)
    jobs = gguf_jobs(source.folder, config, provenance, file_types, out, imatrix=imatrix)
    with Checkpoint(source.folder) as checkpoint:
        check_tensors(source.config, checkpoint.shapes, str(source.folder))
        seconds = write_gguf(
            checkpoint,
            jobs,
            threads=options.threads or available_threads(),
            imatrix=imatrix,
            replace=options.replace,
            progress=progress,
        )
    return [Artefact(job.target, job.plan, seconds) for job in jobs]


def quantize_targets(
    source: ModelSource,
    job: QuantizeJob,
    out: Path,
    options: QuantizeOptions | None = None,
    *,
    devices: tuple[str, ...] = (),
    resume: bool = False,
    progress: ProgressFn = silent,
) -> list[Artefact]:
    """Writes every target of a job under ``out``, calibrating at most once.

    GGUF files get the importance matrix of that calibration, unless one was given as a file or
    nobody asked for a calibration. Where torch is not loaded yet, its threads are told not to spin
    (``calm_openmp``).

    Args:
        source: resolved, so that its folder is on disk.
        devices: where layers are solved; a GPU if there is one, if empty.

    Raises:
        MissingPackageError: a target needs torch, which is not installed.
        Qwen3qError: whatever is wrong with model, text, options or disk, by name.
    """
    calm_openmp()
    options = options or QuantizeOptions()
    check_job(source, job, options, devices)
    file_types = check_targets(source, job, out, options, resume=resume)
    text = importance_text(job, options)
    run = _Run(source, job, out, options, devices, resume, progress)
    with sole_calibration(source, text, out) if text is not None else nullcontext():
        if job.schemes or (file_types and text is not None):
            made = _write_with_torch(run, file_types, text)
        else:
            made = _write_files(run, file_types)
        if text is not None and resume:
            for folder in kept_importance(source, text, out):
                shutil.rmtree(folder, ignore_errors=True)
    made += [
        _kept_gguf(source, job, target, out, options)
        for target in job.targets
        if isinstance(target, FileType) and target not in file_types
    ]
    order = [target_name(target) for target in job.targets]
    return sorted(made, key=lambda artefact: order.index(artefact.plan.format))


@dataclass(frozen=True, slots=True)
class _Run:
    """The arguments of ``quantize_targets``."""

    source: ModelSource
    job: QuantizeJob
    out: Path
    options: QuantizeOptions
    devices: tuple[str, ...]
    resume: bool
    progress: ProgressFn


def _write_with_torch(
    run: _Run, file_types: Sequence[FileType], text: CalibrationRecipe | None
) -> list[Artefact]:
    """The job's folders, and these GGUF files with the importance that ``text`` gives them."""
    _require_packages(run.job)
    require_room(run.source, run.job, run.out, run.options, file_types, resume=run.resume)
    from qwen3q.quantize.calibrated import quantize_calibrated
    from qwen3q.quantize.folder import RunOptions
    from qwen3q.quantize.stream import StreamOptions
    from qwen3q.quantize.team import torch_threads

    devices = run.devices or (best_device(),)
    stream = StreamOptions(devices, run.job.activation_memory_bytes, run.out)
    with torch_threads(run.options.threads):
        made, matrix, store = quantize_calibrated(
            run.source,
            run.job,
            run.out,
            RunOptions(run.resume, run.options.replace, stream),
            importance=bool(file_types) and text is not None,
            threads=run.options.threads,
            progress=run.progress,
        )
    with telling(lambda: store.what_is_kept() if store else ""):
        made += _write_files(run, file_types, matrix)
    if store:
        store.discard()
    return made


def _write_files(
    run: _Run, file_types: Sequence[FileType], matrix: ImportanceMatrix | None = None
) -> list[Artefact]:
    """GGUF files, which a run that goes on may replace: it was asked before whether it may."""
    if not file_types:
        return []
    options = replace(run.options, replace=run.options.replace or run.resume)
    return quantize_gguf(
        run.source, file_types, run.out, options, imatrix=matrix, progress=run.progress
    )


def require_room(
    source: ModelSource,
    job: QuantizeJob,
    out: Path,
    options: QuantizeOptions,
    file_types: Sequence[FileType],
    *,
    resume: bool = False,
) -> None:
    """Whether all that will be written fits: files that come after hours of calibration, too.

    Args:
        source: its weights need not be on disk yet.
        file_types: of the job, those that are still to be written.

    Raises:
        DiskError: it does not, or can't be written.
    """
    targets: list[Target] = [*([] if resume else job.schemes), *file_types]
    plans = plan_targets(source, targets, options, calibration=importance_text(job, options))
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    require_free_space(there, sum(plan.file_bytes for plan in plans))


def _kept_gguf(
    source: ModelSource, job: QuantizeJob, file_type: FileType, out: Path, options: QuantizeOptions
) -> Artefact:
    """A file that an earlier run completed, if not all that it did after it."""
    path = out / gguf_file_name(source.title, file_type)
    with sole_writer(path):
        pass  # a run that was killed left its lock
    config = extended(source.config, options)
    weighted = options.imatrix is not None or importance_text(job, options) is not None
    plan = plan_target(source.title, config, file_type, has_imatrix=weighted)
    beside = path.stat().st_size - plan.tensor_bytes
    return Artefact(path, replace(plan, overhead_bytes=beside, overhead_exact=True), 0.0)


def predict_memory(
    source: ModelSource, job: QuantizeJob, options: QuantizeOptions, devices: tuple[str, ...] = ()
) -> Footprint | None:
    """What the process of ``quantize_targets`` will take at most; None where nothing is calibrated
    or layers lie in a GPU's memory.

    Raises:
        MissingPackageError: a target needs torch, which is not installed.
    """
    if not any(s.is_uniform for s in job.schemes) and importance_text(job, options) is None:
        return None
    calm_openmp()
    _require_packages(job)
    from qwen3q.quantize.calibrated import predicted_footprint
    from qwen3q.quantize.team import torch_threads

    with torch_threads(options.threads):
        return predicted_footprint(source.config, job, devices)


def _require_packages(job: QuantizeJob) -> None:
    """Loads what the job is done with, so that what it takes in memory is there from the start.

    Raises:
        MissingPackageError: torch or bitsandbytes is not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            "torch is not installed, and calibration needs it.", "pip install 'qwen3q[torch]'"
        ) from None
    if any(scheme.layout in (Layout.BNB_NF4, Layout.BNB_INT8) for scheme in job.schemes):
        from qwen3q.formats.bitsandbytes import load_bitsandbytes

        load_bitsandbytes()
