"""Whether a job can be done and its artefacts may be written, asked before any work begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3q.devices import check_device
from qwen3q.errors import DiskError, ModelError, UsageError
from qwen3q.files import partial_path
from qwen3q.models.source import ModelSource
from qwen3q.models.tokenizer import read_tokenizer
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.job import QuantizeJob
from qwen3q.plan.scheme_fit import check_scheme
from qwen3q.quantize.gguf import gguf_file_name
from qwen3q.quantize.gguf_whole import whole_types
from qwen3q.quantize.options import QuantizeOptions, extended, importance_text
from qwen3q.quantize.own_matrix import kept_importance


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
    had kept importance for them or begun a new one beside: then it had leave to.

    Raises:
        DiskError: a file is there that may not be replaced.
    """
    file_types = [target for target in job.targets if isinstance(target, FileType)]
    if not resume:
        require_gguf_targets(source, file_types, out, options)
    if not resume or not file_types or source.folder is None:
        return file_types  # without a folder, asked again once the model is downloaded
    text = importance_text(job, options)
    config = extended(source.config, options)
    whole = whole_types(source, config, file_types, out, imatrix=options.imatrix, calibration=text)
    left = [file_type for file_type in file_types if file_type not in whole]
    if text is None or not kept_importance(source, text, out):
        partials = {t: partial_path(out / gguf_file_name(source.title, t)) for t in left}
        require_gguf_targets(source, [t for t in left if not partials[t].exists()], out, options)
    return left


def require_gguf_targets(
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
