"""How many threads llama.cpp and torch should use here, and how they wait for each other."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from threading import Event, Thread

_SPIN_ROUNDS = 10_000
"""About 0.3 ms: longer than threads of one matrix product differ when each has its core."""

NARROW = 1024
"""Below this hidden size a model's operations are so short that threads mostly wait."""
_SLOW_HAND_OVER = 2e-4


def calm_openmp() -> None:
    """Keeps threads of ggml and torch from spinning while other programs need the cores.

    By default GCC's OpenMP spins for about 10 ms at each of the several hundred barriers per
    token. On a busy machine the thread that is waited for does not run meanwhile, and decoding
    gets a hundred times slower. So threads spin for a short time only, and not at all if the
    machine is busy now. Has an effect only before those libraries are loaded; settings of the
    user's own stay.
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return
    busy = _busy_threads() > default_threads() / 2
    os.environ["GOMP_SPINCOUNT"] = "0" if busy else str(_SPIN_ROUNDS)


def _busy_threads() -> float:
    """Threads of others that want to run: over the last minute, and still now."""
    try:
        load, _, _, running, _ = Path("/proc/loadavg").read_text().split()
        return min(float(load), int(running.partition("/")[0]) - 1)
    except (OSError, ValueError):
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def available_threads() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Physical cores this process may use, within a container's CPU quota.

    Two hyperthreads of one core share the units that quantized matrix products need.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        cores = {_siblings(cpu) for cpu in cpus}
        return max(1, min(len(cores), _quota()))
    return max(1, os.cpu_count() or 1)


def model_threads(asked: int | None, width: int) -> int:
    """How many threads a model with this hidden size computes on, unless the user gave a number."""
    return asked or worthwhile_threads(default_threads(), width)


def worthwhile_threads(cores: int, width: int) -> int:
    """``cores``, or a single one where a model with this hidden size would not gain from more.

    A narrow model gains little, and where threads wait long for each other it gets ten to a
    hundred times slower: on a busy machine, or on virtual cores that fall asleep.
    """
    if cores > 1 and width < NARROW and hand_over_seconds() > _SLOW_HAND_OVER:
        return 1
    return cores


@cache
def hand_over_seconds() -> float:
    """How long a thread that slept for some milliseconds takes to answer another: the third
    quartile of a few tries.

    About 0.1 ms on an idle machine. Where a host must first wake its virtual cores, most tries are
    as fast as that and some take milliseconds.
    """
    ping, pong, rounds = Event(), Event(), 9

    def answer() -> None:
        for _ in range(rounds):
            ping.wait()
            ping.clear()
            pong.set()

    other = Thread(target=answer, daemon=True)
    other.start()
    seconds: list[float] = []
    for _ in range(rounds):
        time.sleep(0.005)
        started = time.perf_counter()
        ping.set()
        pong.wait()
        pong.clear()
        seconds.append((time.perf_counter() - started) / 2)
    other.join()
    return sorted(seconds)[rounds * 3 // 4]


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
