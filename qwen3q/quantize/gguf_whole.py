"""Whether a GGUF file that is there already is one that a job would write."""

from __future__ import annotations

from pathlib import Path

from qwen3q.errors import Qwen3qError
from qwen3q.files import partial_path
from qwen3q.formats.gguf_file import read_header
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.formats.imatrix import ImportanceMatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.quantize.gguf import GgufJob, encoded_header, gguf_file_name, gguf_jobs


def is_whole(
    source: ModelSource,
    config: Qwen3Config,
    file_type: FileType,
    out: Path,
    *,
    imatrix: ImportanceMatrix | None,
    calibration: CalibrationRecipe | None,
) -> bool:
    """Whether ``out`` holds this type's file of this model, with its planned header and size.

    A file gets its name only when its data are on disk, so what has both is complete. But one that
    is older than the model's weights or than a file of calibration text, or beside which a new one
    was begun, is of another run.

    Args:
        source: its folder is on disk.
        imatrix: the matrix that was given as a file.
        calibration: the text that makes a matrix on the way, else None.
    """
    assert source.folder is not None
    target = out / gguf_file_name(source.title, file_type)
    if not target.is_file() or partial_path(target).exists():
        return False
    inputs = list(source.folder.glob("*.safetensors"))
    if calibration is not None and Path(calibration.source).is_file():
        inputs.append(Path(calibration.source))
    if target.stat().st_mtime < max((path.stat().st_mtime for path in inputs), default=0):
        return False
    if calibration is not None:
        imatrix = _stated_matrix(target, calibration)
        if imatrix is None:
            return False
    provenance = Provenance(source.title, source.repo, source.revision)
    [job] = gguf_jobs(source.folder, config, provenance, [file_type], out, imatrix=imatrix)
    return _holds(job)


def _stated_matrix(path: Path, calibration: CalibrationRecipe) -> ImportanceMatrix | None:
    """What a file says of the matrix it was made with, where that came from this much of this
    text."""
    try:
        stated = read_header(path).metadata
        label = str(stated["quantize.imatrix.file"])
        entries = int(stated["quantize.imatrix.entries_count"])
        chunks = int(stated["quantize.imatrix.chunks_count"])
    except (Qwen3qError, KeyError, TypeError, ValueError):
        return None
    if label not in (calibration.source, Path(calibration.source).name):
        return None
    if calibration.samples not in (None, chunks):
        return None
    return ImportanceMatrix({}, label, entries, chunks)


def _holds(job: GgufJob) -> bool:
    header = encoded_header(job)
    with job.target.open("rb") as file:
        return job.target.stat().st_size == job.plan.file_bytes and file.read(len(header)) == header
