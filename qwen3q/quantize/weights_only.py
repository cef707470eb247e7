"""Units of work that need no calibration: float tensors, bitsandbytes, FP8."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.checkpoint.torch_io import read_tensor, torch_dtype
from qwen3q.errors import CheckpointError
from qwen3q.formats.folder import dequantize_packed, pack_weight
from qwen3q.plan.folder import FLOAT_DTYPES
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.folder_work import FolderWork
from qwen3q.quantize.journal import OUTSIDE


def unsolved_units(work: FolderWork) -> list[str]:
    """What of a folder is still missing and needs no solver: everything outside decoder layers,
    and all of a format that is packed from the weights alone."""
    solved = work.job.scheme.is_uniform
    return [unit for unit in work.missing if unit == OUTSIDE or not solved]


def pack_unit(work: FolderWork, unit: str, checkpoint: Checkpoint) -> None:
    """Makes one unit from the checkpoint's weights.

    Raises:
        CheckpointError: a weight is not finite, or too large for fp16.
        MissingPackageError: bitsandbytes is not installed.
    """
    report: list[dict[str, Any]] = []
    work.finish_unit(unit, _made(work, unit, checkpoint, report), report)


def _made(
    work: FolderWork, unit: str, checkpoint: Checkpoint, report: list[dict[str, Any]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """A unit's tensors, one source tensor in memory at a time; adds their rows to ``report``."""
    scheme = work.job.scheme
    for spec in work.sources(unit):
        chosen = scheme.at(spec.name) if spec.is_linear else None
        weight = read_tensor(checkpoint, spec.name)
        if chosen is None:
            yield spec.name, _cast(spec.name, weight, scheme)
        else:
            parts, row = _pack_weight(spec.name, weight, chosen)
            module = spec.name.removesuffix(".weight")
            yield from ((f"{module}.{suffix}", part) for suffix, part in parts.items())
            report.append(row)
        checkpoint.release(spec.name)


def _cast(name: str, weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """A float tensor as this scheme keeps it."""
    dtype = FLOAT_DTYPES.get(scheme.name)
    if dtype is None:
        return weight
    cast = weight.to(torch_dtype(dtype))
    if not torch.isfinite(cast).all():
        raise CheckpointError(f"{name} holds values too large for {dtype}.", "Take bf16.")
    return cast


def _pack_weight(
    name: str, weight: torch.Tensor, scheme: Scheme
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """One linear packed without calibration, and its report row."""
    started = time.perf_counter()
    parts = pack_weight(scheme, weight)
    exact = weight.float()
    difference = dequantize_packed(scheme, parts, weight.shape).sub_(exact)
    error = difference.square_().sum(dtype=torch.float64)
    power = exact.square().sum(dtype=torch.float64)
    row = {
        "name": name,
        "bits": scheme.bits,
        "algorithm": str(scheme.layout),
        "error": float(error / power.clamp(min=1e-300)),
        "seconds": round(time.perf_counter() - started, 6),
    }
    return parts, row
