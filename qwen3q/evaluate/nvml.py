"""NVIDIA's management library: memory, energy, driver and clocks of the GPUs of a run.

The package is ``nvidia-ml-py`` (imported as ``pynvml``). It is imported where it is used; without
it, or without a driver, every figure is None and ``GpuMeter.note`` says why in one line.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from qwen3q.closing import Closing

_IN_USE_BYTES = 64 << 20
"""A GPU whose memory grew by less holds no part of the run: a CUDA context alone is larger."""

_SHORTEST_NANOSECONDS = 500_000_000
"""The counter is updated every few tens of milliseconds; a shorter run's difference is noise."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU at one moment.

    Attributes:
        memory_bytes: all of it, as the driver reports it.
        sm_mhz, memory_mhz: clocks now; None where the driver does not say.
    """

    name: str
    memory_bytes: int
    sm_mhz: int | None
    memory_mhz: int | None


class GpuMeter(Closing):
    """Reads the GPUs of this machine. Make it before the model is loaded, and close it.

    Memory is this process's where the driver lists processes. In containers it lists none or
    under other ids, so it then is what each GPU's use grew by since the meter was made.

    Attributes:
        note: why nothing is measured; empty if something is.
    """

    def __init__(self) -> None:
        self._nvml, self.note = _open()
        self._handles: list[Any] = []
        self._before: list[int] = []
        if self._nvml is None:
            return
        try:
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            self._before = [int(self._nvml.nvmlDeviceGetMemoryInfo(h).used) for h in self._handles]
        except self._nvml.NVMLError as error:
            self._handles, self._before = [], []
            self.note = f"NVML finds no usable GPU ({error}): no GPU memory or energy in the rows."
        else:
            if not count:
                self.note = "NVML finds no GPU: no GPU memory or energy in the rows."

    def used_bytes(self) -> int | None:
        """Memory of this run on all GPUs together; None if it is on none."""
        used = [self._used(index) for index in range(len(self._handles))]
        return sum(self._on_gpus(used)) or None

    def joules(self) -> float | None:
        """Energy counters of the GPUs of this run, since the driver was loaded.

        Meaningful as a difference. None if the run is on no GPU, or one has no counter (before
        Volta).
        """
        total = 0
        found = False
        for index, handle in enumerate(self._handles):
            if not self._on_gpus([self._used(index)]):
                continue
            millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)
            if millijoules is None:
                return None
            total, found = total + int(millijoules), True
        return total / 1e3 if found else None

    def facts(self) -> list[GpuFacts]:
        """Every GPU, in NVML's order."""
        return [self._facts(handle) for handle in self._handles]

    def driver(self) -> str | None:
        """The driver's version; None without NVML."""
        if self._nvml is None:
            return None
        version = self._ask("nvmlSystemGetDriverVersion")
        return None if version is None else _text(version)

    def close(self) -> None:
        """Ends the use of NVML; calling it again does nothing."""
        if self._nvml is not None:
            self._ask("nvmlShutdown")
            self._nvml, self._handles = None, []

    def _used(self, index: int) -> int:
        handle = self._handles[index]
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", handle) or []
        own = [p.usedGpuMemory for p in processes if p.pid == os.getpid()]
        if own and own[0] is not None:
            return int(own[0])
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return 0 if memory is None else int(memory.used) - self._before[index]

    def _on_gpus(self, used: list[int]) -> list[int]:
        return [nbytes for nbytes in used if nbytes >= _IN_USE_BYTES]

    def _facts(self, handle: Any) -> GpuFacts:
        assert self._nvml is not None
        name = self._ask("nvmlDeviceGetName", handle)
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        clocks = (self._nvml.NVML_CLOCK_SM, self._nvml.NVML_CLOCK_MEM)
        sm, mem = (self._ask("nvmlDeviceGetClockInfo", handle, clock) for clock in clocks)
        return GpuFacts(
            _text(name) if name is not None else "NVIDIA GPU",
            int(memory.total) if memory is not None else 0,
            sm,
            mem,
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What NVML answers; None where it has no answer (not supported, no permission, ...)."""
        assert self._nvml is not None
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError:
            return None


def joules_per_token(
    before: float | None, after: float | None, tokens: int, nanoseconds: int
) -> float | None:
    """Energy per token between two readings; None without a counter, or over less than 0.5 s."""
    if before is None or after is None or nanoseconds < _SHORTEST_NANOSECONDS:
        return None
    return (after - before) / tokens


def _open() -> tuple[ModuleType | None, str]:
    """pynvml with NVML started, or None and why not."""
    without = "no GPU memory or energy in the rows"
    try:
        import pynvml
    except ImportError:
        return None, f"nvidia-ml-py is not installed (pip install 'qwen3q[nvml]'): {without}."
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML can't be used ({error}): {without}."
    return pynvml, ""


def _text(value: str | bytes) -> str:
    """Older packages return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
