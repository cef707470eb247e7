"""Which GGUF files that are there already are those that a job would write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3q.errors import Qwen3qError
from qwen3q.files import partial_path
from qwen3q.formats.gguf_file import read_header
from qwen3q.formats.gguf_metadata import Provenance
from qwen3q.formats.imatrix import ImportanceMatrix, read_imatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.plan.gguf_types import FileType
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.quantize.gguf import GgufJob, encoded_header, gguf_file_name, gguf_jobs
from qwen3q.quantize.own_matrix import own_matrix


def whole_types(
    source: ModelSource,
    config: Qwen3Config,
    file_types: Sequence[FileType],
    out: Path,
    *,
    imatrix: Path | None,
    calibration: CalibrationRecipe | None,
) -> list[FileType]:
    """The types whose file of this model ``out`` holds, with its planned header and size.

    A file gets its name only when its data are on disk, so what has both is complete. But one that
    is older than what it is made from, or beside which a new one was begun, is of another run. So
    is one whose header tells of another calibration.

    Args:
        source: its folder is on disk.
        config: the source's, or that with YaRN added.
        imatrix: an importance matrix.
        calibration: the text that makes one on the way, else None.

    Raises:
        Qwen3qError: the importance matrix can't be read or is another model's.
    """
    assert source.folder is not None
    made_from = [*source.folder.glob("*.safetensors")]
    given = None
    if imatrix is not None:
        made_from.append(imatrix)
        given = read_imatrix(imatrix, source.config)
    elif calibration is not None and Path(calibration.source).is_file():
        made_from.append(Path(calibration.source))
    newest = max((path.stat().st_mtime for path in made_from), default=0)

    def matrix_of(target: Path) -> ImportanceMatrix | None:
        if given is None and calibration is not None:
            return own_matrix(source.config, calibration, _stated_rows(target))
        return given

    whole = []
    for file_type in file_types:
        target = out / gguf_file_name(source.title, file_type)
        if not target.is_file() or partial_path(target).exists():
            continue
        provenance = Provenance(source.title, source.repo, source.revision)
        matrix = matrix_of(target)
        [job] = gguf_jobs(source.folder, config, provenance, [file_type], out, imatrix=matrix)
        if target.stat().st_mtime >= newest and _holds(job):
            whole.append(file_type)
    return whole


def _stated_rows(path: Path) -> int:
    """How many rows a file says that its importance matrix was made from; 0 if it says nothing."""
    try:
        rows = read_header(path).metadata.get("quantize.imatrix.chunks_count")
    except Qwen3qError:
        return 0
    return rows if isinstance(rows, int) and 0 <= rows < 1 << 32 else 0


def _holds(job: GgufJob) -> bool:
    header = encoded_header(job)
    with job.target.open("rb") as file:
        return job.target.stat().st_size == job.plan.file_bytes and file.read(len(header)) == header
