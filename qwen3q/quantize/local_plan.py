"""The plan of a folder whose model is on disk: its tensors' own dtypes, its own tokenizer."""

from __future__ import annotations

from pathlib import Path

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import UsageError
from qwen3q.models.source import ModelSource
from qwen3q.models.tensors import check_tensors
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.plan import Plan
from qwen3q.plan.schemes import Scheme

COPIED_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
)
"""What a quantized folder takes over from its source as it is."""

_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def copied_files(folder: Path) -> list[Path]:
    """The source's files that an artefact takes over."""
    return [folder / name for name in COPIED_NAMES if (folder / name).is_file()]


def plan_local(source: ModelSource, checkpoint: Checkpoint, scheme: Scheme) -> Plan:
    """The plan that will be executed; reads headers, no weight.

    Raises:
        ModelError: the checkpoint's tensors are not those of its config.
        UsageError: a weight is no float, or a linear does not fit the scheme.
    """
    assert source.folder is not None
    check_tensors(source.config, checkpoint.shapes, str(source.folder))
    return plan_folder(
        source.title,
        source.config,
        scheme,
        dtypes=float_dtypes(checkpoint),
        tokenizer_bytes=sum(path.stat().st_size for path in copied_files(source.folder)),
    )


def source_dtypes(source: ModelSource) -> dict[str, str]:
    """``float_dtypes`` of a model whose weights are on disk; empty where they are not."""
    if source.folder is None or not any(source.folder.glob("*.safetensors")):
        return {}
    with Checkpoint(source.folder) as checkpoint:
        return float_dtypes(checkpoint)


def float_dtypes(checkpoint: Checkpoint) -> dict[str, str]:
    """Dtype of each tensor by name, as torch calls it.

    Raises:
        UsageError: one is not stored in a float of 16 or 32 bits.
    """
    return {name: float_dtype(checkpoint, name) for name in checkpoint.tensors}


def float_dtype(checkpoint: Checkpoint, name: str) -> str:
    """One tensor's dtype, as torch calls it; raises as ``float_dtypes`` does."""
    stored = checkpoint.tensors[name].dtype
    if stored not in _FLOATS:
        raise UsageError(
            f"{name} is stored as {stored}; BF16, F16 and F32 weights can be quantized.",
            "Start from the original bf16 model.",
        )
    return _FLOATS[stored]
