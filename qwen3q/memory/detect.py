"""The GPUs of this machine: through nvidia-smi (NVML's own tool), rocm-smi or Metal."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass

from qwen3q.errors import UsageError
from qwen3q.memory.gpus import MIB, Family, Gpu, match_gpu

_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Detected:
    """A GPU that is here, and how much of it other programs hold."""

    gpu: Gpu
    free_bytes: int


def detect_gpus() -> list[Detected]:
    """The GPUs of this machine, in the driver's order.

    Raises:
        UsageError: none is found.
    """
    found = _found()
    if not found:
        raise UsageError(
            "No GPU was found through nvidia-smi, rocm-smi or Metal.",
            'Name one, as in --gpu "RTX 4090", give its memory with --vram 24GiB, or take '
            "--gpu none for the processor alone.",
        )
    return found


def has_gpus() -> bool:
    """Whether ``detect_gpus`` finds any."""
    return bool(_found())


def parse_nvidia_smi(text: str) -> list[Detected]:
    """``nvidia-smi --query-gpu=name,memory.total,memory.free --format=csv,noheader,nounits``."""
    found = []
    for line in text.strip().splitlines():
        fields = [field.strip() for field in line.rsplit(",", 2)]
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            found.append(
                _detected(fields[0], int(fields[1]) * MIB, int(fields[2]) * MIB, Family.NVIDIA)
            )
    return found


def parse_rocm_smi(text: str) -> list[Detected]:
    """``rocm-smi --showproductname --showmeminfo vram --json``."""
    try:
        cards = json.loads(text)
    except json.JSONDecodeError:
        return []
    found = []
    for _, card in sorted(cards.items()):
        lower = {key.lower(): str(value) for key, value in card.items()}
        total = lower.get("vram total memory (b)", "")
        used = lower.get("vram total used memory (b)", "0")
        name = lower.get("card series") or lower.get("card model") or "Radeon"
        if total.isdigit() and used.isdigit():
            free = int(total) - int(used)
            found.append(_detected(name, int(total), free, Family.RADEON))
    return found


def parse_metal(chip: str, memory_bytes: int) -> list[Detected]:
    """An Apple chip's name and the machine's memory, of which Metal uses two thirds or more."""
    usable = memory_bytes * 2 // 3 if memory_bytes <= 36 << 30 else memory_bytes * 3 // 4
    return [_detected(f"{chip} {memory_bytes >> 30}GB", memory_bytes, usable, Family.APPLE)]


def _detected(name: str, total: int, free: int, family: Family) -> Detected:
    known = match_gpu(f"{name} {round(total / (1 << 30))}GB") or match_gpu(name)
    if known is None:
        known = Gpu(name, "detected", family, total, free, 0.0, 0.0)
    gpu = Gpu(
        name, known.kind, known.family, total, free, known.bandwidth, known.tflops,
        tuple(value for value in known.uncertain if value not in ("memory", "usable")),
    )  # fmt: skip
    return Detected(gpu, free)


def _found() -> list[Detected]:
    return _nvidia() or _amd() or _metal()


def _nvidia() -> list[Detected]:
    query = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
    return parse_nvidia_smi(_run("nvidia-smi", *query))


def _amd() -> list[Detected]:
    return parse_rocm_smi(_run("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"))


def _metal() -> list[Detected]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    chip = _run("sysctl", "-n", "machdep.cpu.brand_string").strip()
    memory = _run("sysctl", "-n", "hw.memsize").strip()
    return parse_metal(chip, int(memory)) if chip and memory.isdigit() else []


def _run(program: str, *arguments: str) -> str:
    """What a program prints, or an empty string if it is absent or fails."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
