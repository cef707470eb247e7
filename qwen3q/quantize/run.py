"""From a model and the names of formats to artefacts on disk: the one call that verbs make."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.devices import best_device, check_device
from qwen3q.errors import DiskError, MissingPackageError, ModelError, UsageError, telling
from qwen3q.files import require_free_space
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.formats.imatrix import ImportanceMatrix, read_imatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.models.tensors import check_tensors
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.models.yarn import with_yarn
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.job import QuantizeJob
from qwen3q.plan.plan import Plan
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.plan.schemes import Layout, Scheme, check_scheme
from qwen3q.plan.targets import Target, plan_target, target_name
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.artefacts import Artefact
from qwen3q.quantize.footprint import Footprint
from qwen3q.quantize.gguf import gguf_file_name, gguf_jobs, write_gguf
from qwen3q.quantize.gguf_whole import whole_types
from qwen3q.quantize.local_plan import plan_local
from qwen3q.quantize.own_matrix import kept_importance, own_matrix
from qwen3q.threads import available_threads, calm_openmp


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How a job is done, apart from its formats and calibration.

    Attributes:
        yarn: factor of a YaRN context extension to write into GGUF metadata.
        imatrix: llama.cpp importance matrix for GGUF files.
        threads: cores to use; None for every one.
        replace: overwrite what exists.
    """

    yarn: float | None = None
    imatrix: Path | None = None
    threads: int | None = None
    replace: bool = False


def extended(config: Qwen3Config, options: QuantizeOptions) -> Qwen3Config:
    """The config as the files will state it."""
    return with_yarn(config, options.yarn) if options.yarn is not None else config


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


def check_job(
    source: ModelSource, job: QuantizeJob, options: QuantizeOptions, devices: Sequence[str] = ()
) -> None:
    """Whether a job can be done, from the model's config and what lies beside: reads no weight, so
    that it can be asked before they are downloaded.

    Raises:
        ModelError: the model is quantized already, or its tokenizer is missing or broken.
        UsageError: the importance matrix, the calibration text or a device is not there, or the
            text's rows or a format do not fit the model.
        MissingPackageError: a device needs torch, which is not installed.
    """
    for device in devices:
        check_device(device)
    if not job.has_gguf:
        for option, value in (("--yarn", options.yarn), ("--imatrix", options.imatrix)):
            if value is not None:
                raise UsageError(
                    f"{option} {value} is for GGUF files, and none is asked for.",
                    "Add --to gguf:Q4_K_M, for instance, or leave it out.",
                )
    if options.imatrix is not None and not options.imatrix.is_file():
        raise UsageError(
            f"There is no importance matrix {options.imatrix}.",
            "--calibration balanced makes one on the way.",
        )
    config = source.config
    if config.quant_method is not None:
        raise ModelError(
            f"{source.title} is quantized already ({config.quant_method}).",
            "Give the float model that it was made from.",
        )
    if job.calibrates:
        from qwen3q.calibrate.load import check_calibration

        check_calibration(job.calibration.source)
        length, context = job.calibration.length, config.max_position_embeddings
        if length > context:
            raise UsageError(
                f"--calibration-length {length} is longer than the context of {source.title}, "
                f"{context} tokens.",
                "Rows of 512 to 2048 tokens are enough.",
            )
    for scheme in job.schemes:
        check_scheme(scheme, config)
    if job.schemes and source.folder is not None:
        read_tokenizer(source.folder)  # copied into every folder


def check_targets(
    source: ModelSource,
    job: QuantizeJob,
    out: Path,
    options: QuantizeOptions,
    *,
    resume: bool = False,
) -> list[FileType]:
    """Whether everything may be written, before a model is downloaded or text is run.

    Returns:
        The job's file types that are still to be written.

    Raises:
        UsageError: a folder is there, or a format that can't be written, or ``resume`` together
            with replacing.
        DiskError: a file is there.
    """
    if resume and options.replace:
        raise UsageError(
            "--resume goes on with what is there, and --force throws it away.", "Give one of them."
        )
    file_types = _gguf_left(source, job, out, options, resume=resume)
    if not job.schemes:
        return file_types
    from qwen3q.quantize.artefact import artefact_name, require_target, require_writable

    for scheme in job.schemes:
        require_writable(scheme)
        if not resume:
            require_target(out / artefact_name(source.title, scheme), replace=options.replace)
    return file_types


def _gguf_left(
    source: ModelSource, job: QuantizeJob, out: Path, options: QuantizeOptions, *, resume: bool
) -> list[FileType]:
    """The job's file types that are still to be written.

    A run that goes on leaves alone those that are there and whole. The others it replaces where it
    kept importance for them: then it was begun with leave to write them.

    Raises:
        DiskError: a file is there that may not be replaced.
    """
    file_types = [target for target in job.targets if isinstance(target, FileType)]
    if resume and file_types:
        if source.folder is None:  # asked again once the model is downloaded
            return file_types
        text = importance_text(job, options)
        config = extended(source.config, options)
        whole = whole_types(
            source, config, file_types, out, imatrix=options.imatrix, calibration=text
        )
        file_types = [file_type for file_type in file_types if file_type not in whole]
        if text is not None and kept_importance(source, text, out):
            return file_types
    _require_gguf_targets(source, file_types, out, options)
    return file_types


def importance_text(job: QuantizeJob, options: QuantizeOptions) -> CalibrationRecipe | None:
    """The text from which the job's GGUF files get an importance matrix; None if they get none of
    its own calibration."""
    shares = job.has_gguf and job.calibrates and options.imatrix is None
    return job.calibration if shares else None


def _require_gguf_targets(
    source: ModelSource, file_types: Sequence[FileType], out: Path, options: QuantizeOptions
) -> None:
    """Whether each type's file may be written.

    Raises:
        DiskError: one exists and may not be replaced.
    """
    for file_type in file_types:
        target = out / gguf_file_name(source.title, file_type)
        if target.is_dir():
            raise DiskError(f"{target} is a folder.", "Choose another folder with --out.")
        if target.exists() and not options.replace:
            raise DiskError(f"{target} exists already.", "Add --force to replace it.")


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
    _require_gguf_targets(source, file_types, out, options)
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
    files = replace(options, replace=options.replace or resume)
    text = importance_text(job, options)
    share = bool(file_types) and text is not None
    kept = [
        _kept_gguf(source, job, target, out, options)
        for target in job.targets
        if isinstance(target, FileType) and target not in file_types
    ]
    if not job.schemes and not share:
        if file_types:
            kept += quantize_gguf(source, file_types, out, files, progress=progress)
        if resume:
            _discard_kept(source, text, out)
        return sorted(kept, key=lambda artefact: _position(job, artefact))
    _require_packages(job)
    _require_room(source, [*([] if resume else job.schemes), *file_types], out, options, text)
    from qwen3q.quantize.calibrated import quantize_calibrated
    from qwen3q.quantize.folder import RunOptions
    from qwen3q.quantize.stream import StreamOptions
    from qwen3q.quantize.team import torch_threads

    stream = StreamOptions(devices or (best_device(),), job.activation_memory_bytes, out)
    with torch_threads(options.threads):
        artefacts, matrix, store = quantize_calibrated(
            source,
            job,
            out,
            RunOptions(resume, options.replace, stream),
            importance=share,
            threads=options.threads,
            progress=progress,
        )
    if file_types:
        with telling(lambda: store.what_is_kept() if store else ""):
            artefacts += quantize_gguf(
                source, file_types, out, files, imatrix=matrix, progress=progress
            )
    if store:
        store.discard()
    if resume:
        _discard_kept(source, text, out)
    return sorted(artefacts + kept, key=lambda artefact: _position(job, artefact))


def _require_room(
    source: ModelSource,
    targets: Sequence[Target],
    out: Path,
    options: QuantizeOptions,
    text: CalibrationRecipe | None,
) -> None:
    """Whether all that will be written fits, files that come after hours of calibration too.

    Raises:
        DiskError: it does not, or can't be written.
    """
    plans = plan_targets(source, targets, options, calibration=text)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    require_free_space(there, sum(plan.file_bytes for plan in plans))


def _discard_kept(source: ModelSource, text: CalibrationRecipe | None, out: Path) -> None:
    """Removes what cut runs of this job kept for its GGUF files, which are all there now."""
    if text is not None:
        for folder in kept_importance(source, text, out):
            shutil.rmtree(folder, ignore_errors=True)


def _kept_gguf(
    source: ModelSource, job: QuantizeJob, file_type: FileType, out: Path, options: QuantizeOptions
) -> Artefact:
    """A file that an earlier run completed."""
    path = out / gguf_file_name(source.title, file_type)
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


def _position(job: QuantizeJob, artefact: Artefact) -> int:
    return [target_name(target) for target in job.targets].index(artefact.plan.format)
