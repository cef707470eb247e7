"""What to know of a job before it starts: what it leaves out, or takes from elsewhere."""

from __future__ import annotations

from pathlib import Path

from qwen3q.models.json_files import read_optional
from qwen3q.models.source import ModelSource
from qwen3q.models.tokenizer import read_chat_template
from qwen3q.plan.job import QuantizeJob


def job_notes(source: ModelSource, job: QuantizeJob, imatrix: Path | None) -> list[str]:
    """Sentences on what a job makes, from what of the model is on disk.

    Args:
        imatrix: an importance matrix that was given.

    Raises:
        ModelError: ``tokenizer_config.json`` is broken.
    """
    notes: list[str] = []
    if job.has_gguf and job.has_overrides:
        notes.append(
            "The recipe's overrides are for the folders: GGUF files keep the mix of their type."
        )
    if job.has_gguf and job.calibrates and imatrix is not None:
        notes.append(
            f"The GGUF files take their importance from {imatrix}, not from the calibration."
        )
    if source.folder is not None:
        config = read_optional(source.folder / "tokenizer_config.json")
        if read_chat_template(source.folder, config) is None:
            notes.append(
                f"{source.folder} has no chat template, in chat_template.jinja or "
                "tokenizer_config.json, so what is made of it gets none: programs that chat with "
                "it will refuse, or guess one."
            )
    return notes
