"""Folders and GGUF files from one calibration: what ``quantize`` runs when torch is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwen3q.calibrate.enough import rows_enough
from qwen3q.calibrate.load import CalibrationOptions, load_calibration
from qwen3q.calibrate.rows import TokenRows
from qwen3q.calibrate.self_sample import SELF
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.devices import best_device
from qwen3q.formats.imatrix import ImportanceMatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.plan.job import QuantizeJob
from qwen3q.plan.plan import Plan
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.artefacts import Artefact
from qwen3q.quantize.folder import RunOptions, folder_jobs, predicted_peak, quantize_folders
from qwen3q.quantize.footprint import Footprint
from qwen3q.quantize.importance import ImportanceStore
from qwen3q.quantize.own_matrix import importance_prefix, own_matrix
from qwen3q.quantize.self_rows import self_rows
from qwen3q.quantize.solve import SolveOptions
from qwen3q.quantize.stream import StreamOptions


def quantize_calibrated(
    source: ModelSource,
    job: QuantizeJob,
    out: Path,
    run: RunOptions,
    *,
    importance: bool,
    threads: int | None,
    progress: ProgressFn = silent,
) -> tuple[list[Artefact], ImportanceMatrix | None, ImportanceStore | None]:
    """Writes the job's folders from one pass, and collects GGUF's importance matrix if asked.

    Returns:
        The folders, the matrix, and where it is kept until the caller discards it.

    Raises:
        Qwen3qError: whatever is wrong with model, text, options or disk, by name.
    """
    assert source.folder is not None
    text, rows = job.calibration, None
    solve = SolveOptions(**job.algorithm.options())  # type: ignore[arg-type]
    with Checkpoint(source.folder) as checkpoint:
        jobs = folder_jobs(source, checkpoint, job.schemes, out, solve)
        if importance or any(scheme.is_uniform for scheme in job.schemes):
            rows = _calibration_rows(source, text, threads=threads, progress=progress)
        results = quantize_folders(
            source,
            checkpoint,
            jobs,
            rows,
            run,
            importance=importance_prefix(source.config, text, out) if importance else None,
            progress=progress,
        )
    artefacts = [
        Artefact(path, _as_written(job.plan, path), results.seconds)
        for path, job in zip(results.folders, jobs, strict=True)
    ]
    store = results.importance
    matrix = None
    if store and rows:
        values = store.load(source.config.num_hidden_layers)
        matrix = own_matrix(source.config, text, len(rows.rows), values)
    return artefacts, matrix, store


def _calibration_rows(
    source: ModelSource, text: CalibrationRecipe, *, threads: int | None, progress: ProgressFn
) -> TokenRows:
    """The tokens that ``text`` asks for: of a set or a file, or sampled from the model."""
    options = CalibrationOptions(
        samples=text.samples,
        most=rows_enough(source.config, text.tokens_per_channel, text.length),
        length=text.length,
        thinking=text.thinking,
    )
    if text.source == SELF:
        return self_rows(source, options, threads=threads, progress=progress)
    return load_calibration(text.source, source, options)


def _as_written(plan: Plan, folder: Path) -> Plan:
    """A folder's plan with the bytes that its card and report really took."""
    nbytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return replace(plan, overhead_bytes=nbytes - plan.tensor_bytes, overhead_exact=True)


def predicted_footprint(
    config: Qwen3Config, job: QuantizeJob, devices: tuple[str, ...]
) -> Footprint | None:
    """What the run's process will take at most, as far as it is known before text is read: with
    fewer rows than asked for it takes less. None where layers lie in a GPU's memory."""
    solved = sum(scheme.is_uniform for scheme in job.schemes)
    text = job.calibration
    rows = text.samples or rows_enough(config, text.tokens_per_channel, text.length)
    stream = StreamOptions(devices or (best_device(),), job.activation_memory_bytes)
    return predicted_peak(config, solved, (rows, text.length), stream)
