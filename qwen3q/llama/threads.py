"""How many threads llama.cpp should use here."""

from __future__ import annotations

import os
from pathlib import Path


def default_threads() -> int:
    """Physical cores this process may use, within a container's CPU quota.

    Two hyperthreads of one core share the units that quantized matrix products need.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        cores = {_siblings(cpu) for cpu in cpus}
        return max(1, min(len(cores), _quota()))
    return max(1, os.cpu_count() or 1)


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Whole CPUs that cgroup v2 grants, or a large number."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16
