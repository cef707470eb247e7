"""Checks of this machine: Python, packages, processor, memory, disk, GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3q.counts import counted
from qwen3q.threads import available_threads

Status = Literal["ok", "missing", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        status: ``ok``; ``missing`` for an option that is not installed; ``bad`` if broken.
        remedy: the one command or step that mends it, or an empty string.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def run_checks() -> list[Check]:
    """All checks, in reading order."""
    checks: tuple[Callable[[], Check], ...] = (
        _python,
        _processor,
        _memory,
        _disk,
        _gpu,
        _llama,
        _torch,
        _bitsandbytes,
        _harness,
        _nvml,
        _compiler,
        _hub,
    )
    return [check() for check in checks]


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", "ok", found)


def _processor() -> Check:
    return Check("processor", "ok", f"{counted(available_threads(), 'core')} for this process")


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Check("memory", "missing", "size unknown on this system")
    return Check("memory", "ok", f"{total / 2**30:.1f} GiB")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    return Check("disk", "ok", f"{free / 1e9:.1f} GB free here")


def _gpu() -> Check:
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Check("gpu", "ok", "Apple Metal, memory shared with the processor")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
        try:
            run = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return Check(
                "gpu",
                "bad",
                "nvidia-smi is installed but fails",
                "Run nvidia-smi and follow what it says of the driver.",
            )
        return Check("gpu", "ok", "; ".join(run.stdout.strip().splitlines()))
    if shutil.which("rocm-smi"):
        return Check("gpu", "ok", "AMD, ROCm installed")
    return Check("gpu", "missing", "none found; everything runs on the processor")


def _llama() -> Check:
    version = _version("llama-cpp-python")
    if version is None:
        return Check(
            "llama.cpp",
            "missing",
            "not installed; needed for GGUF and chat",
            f"pip install 'qwen3q[llama]'{_cuda_hint()}",
        )
    from qwen3q.errors import Qwen3qError

    try:
        import qwen3q.llama.capi  # noqa: F401  loads and checks the library
        from qwen3q.llama.devices import gpu_devices

        gpus = gpu_devices()
    except Qwen3qError as error:
        return Check("llama.cpp", "bad", error.message, error.hint)
    devices = ", ".join(gpus) or "processor only"
    remedy = ""
    if not gpus and shutil.which("nvidia-smi"):
        remedy = (
            "CMAKE_ARGS='-DGGML_CUDA=ON' pip install --force-reinstall --no-cache-dir "
            f"llama-cpp-python=={version}"
        )
    return Check("llama.cpp", "ok", f"llama-cpp-python {version}, {devices}", remedy)


def _torch() -> Check:
    version = _version("torch")
    if version is None:
        return Check(
            "torch",
            "missing",
            "not installed; needed for GPTQ, AWQ, INT8 and INT4",
            "pip install 'qwen3q[torch]'",
        )
    import torch

    device = (
        f"CUDA {torch.version.cuda}"
        if torch.cuda.is_available()
        else "MPS"
        if torch.backends.mps.is_available()
        else "processor only"
    )
    return Check("torch", "ok", f"{version}, {device}")


def _bitsandbytes() -> Check:
    version = _version("bitsandbytes")
    if version is None:
        return Check(
            "bitsandbytes",
            "missing",
            "not installed; needed for bnb:*",
            "pip install 'qwen3q[bnb]'",
        )
    return Check("bitsandbytes", "ok", version)


def _harness() -> Check:
    version = _version("lm_eval")
    if version is None:
        return Check(
            "lm-eval",
            "missing",
            "not installed; needed for eval --tasks",
            "pip install 'qwen3q[tasks]'",
        )
    return Check("lm-eval", "ok", version)


def _nvml() -> Check:
    version = _version("nvidia-ml-py")
    if version is None:
        return Check(
            "nvml",
            "missing",
            "not installed; needed for GPU memory and energy in eval speed",
            "pip install 'qwen3q[nvml]'",
        )
    from qwen3q.evaluate.nvml import GpuMeter

    with GpuMeter() as meter:
        if meter.note:
            return Check("nvml", "missing", f"nvidia-ml-py {version}; no NVIDIA GPU answers it")
        return Check("nvml", "ok", f"nvidia-ml-py {version}, driver {meter.driver()}")


def _compiler() -> Check:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if found:
        return Check("c++ compiler", "ok", found)
    return Check(
        "c++ compiler",
        "missing",
        "none; only needed to build llama-cpp-python",
        "Install g++ or clang with your system's package manager.",
    )


def _hub() -> Check:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    token = "with a token" if os.environ.get("HF_TOKEN") else "no token in HF_TOKEN"
    return Check("hub", "ok", f"{endpoint}, {'offline' if offline else token}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_hint() -> str:
    return "  (with CMAKE_ARGS='-DGGML_CUDA=ON' for CUDA)" if shutil.which("nvidia-smi") else ""
