"""What one folder's bytes depend on, for its journal and its manifest."""

from __future__ import annotations

from dataclasses import asdict

import torch

from qwen3q import __version__
from qwen3q.calibrate.rows import TokenRows
from qwen3q.fingerprint import canonical_json, files_fingerprint, rows_fingerprint
from qwen3q.models.source import ModelSource
from qwen3q.quantize.artefact import FolderJob
from qwen3q.quantize.local_plan import copied_files
from qwen3q.quantize.names import CONFIG_NAME
from qwen3q.quantize.stream import StreamOptions


def job_fingerprint(
    source: ModelSource,
    weights: str,
    job: FolderJob,
    calibration: TokenRows | None,
    stream: StreamOptions,
) -> dict[str, str]:
    """Everything that the bytes of a job's folder depend on, by what users call it.

    Args:
        weights: ``weights_fingerprint`` of the model.
        calibration: None where none is run.
    """
    assert source.folder is not None
    files = [source.folder / CONFIG_NAME, *copied_files(source.folder)]
    fingerprint = {
        "model": f"{source.title} {weights}",
        "model files": files_fingerprint(files),
        "format": canonical_json(asdict(job.scheme)),
        "qwen3q": __version__,
        "torch": torch.__version__,
    }
    if job.scheme.is_uniform and calibration is not None:
        fingerprint |= {
            "calibration rows": rows_fingerprint(calibration.rows),
            "calibration": canonical_json(calibration.description),
            "options": canonical_json(job.options),
            "device": stream.devices[0].partition(":")[0],
        }
    return fingerprint
