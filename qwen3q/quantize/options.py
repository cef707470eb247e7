"""How a job is done, apart from its formats and its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3q.models.config import Qwen3Config
from qwen3q.models.yarn import with_yarn
from qwen3q.plan.job import QuantizeJob
from qwen3q.plan.recipes import CalibrationRecipe


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


def importance_text(job: QuantizeJob, options: QuantizeOptions) -> CalibrationRecipe | None:
    """The text from which the job's GGUF files get an importance matrix; None if they get none of
    its own calibration."""
    shares = job.has_gguf and job.calibrates and options.imatrix is None
    return job.calibration if shares else None
