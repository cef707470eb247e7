"""The importance matrix that a job's own calibration makes for its GGUF files.

All that a file states of it, but for the number of rows, is known before any text is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3q.calibrate.enough import rows_enough
from qwen3q.calibrate.load import source_label
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.files import sole_writer
from qwen3q.fingerprint import weights_fingerprint
from qwen3q.formats.imatrix import ImportanceMatrix
from qwen3q.models.config import Qwen3Config
from qwen3q.models.source import ModelSource
from qwen3q.models.tensors import model_tensors
from qwen3q.plan.gguf import gguf_name
from qwen3q.plan.recipes import CalibrationRecipe
from qwen3q.quantize.names import IMPORTANCE_PREFIX


def own_matrix(
    config: Qwen3Config,
    text: CalibrationRecipe,
    rows: int = 0,
    values: Mapping[str, NDArray[np.float32]] | None = None,
) -> ImportanceMatrix:
    """The matrix of a calibration with ``text``.

    Args:
        rows: calibration rows that were run; no file's size depends on their number.
        values: mean squared inputs ``[in]`` by checkpoint name; none where only what a file states
            of the matrix matters.
    """
    linears = [s for s in model_tensors(config) if s.is_linear and s.layer is not None]
    return ImportanceMatrix(
        values or {},
        source_label(text.source),
        entries=len({gguf_name(spec) for spec in linears}),
        chunks=rows,
        dataset=_asked_for(config, text),
    )


def _asked_for(config: Qwen3Config, text: CalibrationRecipe) -> str:
    """``balanced, at most 48 rows of 512 tokens``: the text and what is taken of it."""
    rows = text.samples or rows_enough(config, text.tokens_per_channel, text.length)
    modes = {None: "", True: ", with thinking", False: ", without thinking"}[text.thinking]
    return f"{source_label(text.source)}, at most {rows} rows of {text.length} tokens{modes}"


def importance_prefix(config: Qwen3Config, text: CalibrationRecipe, out: Path) -> Path:
    """How the folders begin in which jobs with such a calibration keep importance under ``out``."""
    digest = hashlib.sha256(_asked_for(config, text).encode()).hexdigest()[:8]
    return out / f"{IMPORTANCE_PREFIX}{digest}-"


@contextmanager
def sole_calibration(source: ModelSource, text: CalibrationRecipe, out: Path) -> Iterator[None]:
    """Within, no other run keeps importance of this model and such a calibration under ``out``, nor
    removes it.

    Raises:
        DiskError: another run does.
    """
    assert source.folder is not None
    prefix = importance_prefix(source.config, text, out)
    with Checkpoint(source.folder) as checkpoint:
        kept = prefix.with_name(prefix.name + weights_fingerprint(checkpoint))
    with sole_writer(kept, doing=f"calibrating GGUF files of {source.title} in {out}"):
        yield


def kept_importance(source: ModelSource, text: CalibrationRecipe, out: Path) -> list[Path]:
    """Folders in which runs of this model with such a calibration, that were cut, kept importance.

    Args:
        source: its folder is on disk.
    """
    assert source.folder is not None
    prefix = importance_prefix(source.config, text, out)
    if not any(out.glob(f"{prefix.name}*")):
        return []
    with Checkpoint(source.folder) as checkpoint:
        return sorted(out.glob(f"{prefix.name}{weights_fingerprint(checkpoint)}-*"))
