"""torch's devices by name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qwen3q.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    import torch


def check_device(name: str) -> None:
    """Refuses a device that torch can't compute on here, before work is begun for it.

    Raises:
        UsageError: no device's name, or no such device on this machine.
        MissingPackageError: torch is not installed.
    """
    kind, _, number = name.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UsageError(f"{name!r} is no device.", "Known: cpu, cuda, cuda:1, mps.")
    if kind == "cpu":
        return
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingPackageError(
            f"torch is not installed, and {name} needs it.", "pip install 'qwen3q[torch]'"
        ) from None
    hint = "`qwen3q doctor` tells what this machine has."
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("torch sees no Apple GPU here for the device mps.", hint)
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        gpus = "no CUDA GPU" if count == 0 else f"{count} CUDA GPU{'s' if count > 1 else ''}"
        raise UsageError(f"There is no device {name}: torch sees {gpus} here.", hint)


def best_device() -> str:
    """``cuda``, ``mps`` or ``cpu``, the first that torch sees."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have nothing wider; for long sums."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64
