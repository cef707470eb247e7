"""From a model and the names of formats to artefacts on disk: the one call that verbs make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import DiskError
from qwen3q.files import available_threads
from qwen3q.formats.gguf_metadata import Provenance, with_yarn
from qwen3q.formats.imatrix import read_imatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.models.tensors import check_tensors
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.plan import Plan
from qwen3q.plan.targets import Target, plan_target
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.gguf import gguf_jobs, write_gguf


@dataclass(frozen=True, slots=True)
class GgufOptions:
    """How GGUF files are made.

    Attributes:
        yarn: factor of a YaRN context extension to write into the metadata.
        imatrix: llama.cpp importance matrix for the model.
        threads: None for every core.
        replace: overwrite files that exist.
    """

    yarn: float | None = None
    imatrix: Path | None = None
    threads: int | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Artefact:
    """A finished file or folder, the plan it follows and the seconds its run took."""

    path: Path
    plan: Plan
    seconds: float


def extended(config: Qwen3Config, options: GgufOptions) -> Qwen3Config:
    """The config as the files will state it."""
    return with_yarn(config, options.yarn) if options.yarn is not None else config


def plan_targets(
    source: ModelSource, targets: Sequence[Target], options: GgufOptions
) -> list[Plan]:
    """What each target would be, without reading a weight; exact where the model is on disk.

    Raises:
        UsageError: the model does not fit a format.
        ModelError: its tokenizer is broken, or llama.cpp can't run its config.
    """
    config = extended(source.config, options)
    imatrix = read_imatrix(options.imatrix, source.config) if options.imatrix else None
    plans = []
    for target in targets:
        if isinstance(target, FileType) and source.folder is not None:
            provenance = Provenance(source.title, source.repo, source.revision)
            jobs = gguf_jobs(source.folder, config, provenance, [target], Path(), imatrix=imatrix)
            plans.append(jobs[0].plan)
        else:
            plans.append(plan_target(source.title, config, target, has_imatrix=imatrix is not None))
    return plans


def quantize_gguf(
    source: ModelSource,
    file_types: Sequence[FileType],
    out: Path,
    options: GgufOptions | None = None,
    *,
    progress: ProgressFn = silent,
) -> list[Artefact]:
    """Writes ``out/TITLE-TYPE.gguf`` for every type in one pass over the weights.

    Args:
        source: resolved, so that its folder is on disk.

    Raises:
        DiskError: a target exists and may not be replaced, or there is too little room.
        Qwen3qError: whatever is wrong with the model, by name.
    """
    options = options or GgufOptions()
    assert source.folder is not None
    imatrix = read_imatrix(options.imatrix, source.config) if options.imatrix else None
    provenance = Provenance(source.title, source.repo, source.revision)
    config = extended(source.config, options)
    jobs = gguf_jobs(source.folder, config, provenance, file_types, out, imatrix=imatrix)
    for job in jobs:
        if job.target.exists() and not options.replace:
            raise DiskError(f"{job.target} exists already.", "Add --force to replace it.")
    with Checkpoint(source.folder) as checkpoint:
        check_tensors(source.config, checkpoint.shapes, str(source.folder))
        seconds = write_gguf(
            checkpoint,
            jobs,
            threads=options.threads or available_threads(),
            imatrix=imatrix,
            progress=progress,
        )
    return [Artefact(job.target, job.plan, seconds) for job in jobs]
