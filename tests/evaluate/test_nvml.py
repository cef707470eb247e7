"""GPU figures against a stand-in for pynvml with the real package's functions and error classes."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pynvml
import pytest

from qwen3q.evaluate.nvml import GpuMeter, joules_per_token

MIB = 1 << 20


class Driver:
    """What a driver would answer, behind the names of the real package.

    Attributes:
        used: bytes by GPU; processes: (pid, bytes or None) by GPU.
        energy: millijoules by GPU, None for one without a counter.
    """

    def __init__(self, count: int = 1) -> None:
        self.used = [300 * MIB] * count
        self.processes: list[list[tuple[int, int | None]]] = [[] for _ in range(count)]
        self.energy: list[int | None] = [5_000_000] * count
        self.started = 0

    def install(self, monkeypatch) -> Driver:
        def replace(name, function):
            assert hasattr(pynvml, name), name
            monkeypatch.setattr(pynvml, name, function)

        replace("nvmlInit", self._start)
        replace("nvmlShutdown", self._stop)
        replace("nvmlDeviceGetCount", lambda: len(self.used))
        replace("nvmlDeviceGetHandleByIndex", lambda index: index)
        replace("nvmlDeviceGetName", lambda handle: f"NVIDIA H{handle}")
        replace("nvmlSystemGetDriverVersion", lambda: "580.95")
        replace("nvmlDeviceGetMemoryInfo", self._memory)
        replace("nvmlDeviceGetComputeRunningProcesses", self._processes)
        replace("nvmlDeviceGetTotalEnergyConsumption", self._energy)
        replace("nvmlDeviceGetClockInfo", self._clock)
        return self

    def _start(self):
        self.started += 1

    def _stop(self):
        self.started -= 1

    def _memory(self, handle):
        return SimpleNamespace(total=80 << 30, used=self.used[handle])

    def _processes(self, handle):
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=nbytes) for pid, nbytes in self.processes[handle]
        ]

    def _energy(self, handle):
        if self.energy[handle] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.energy[handle]

    def _clock(self, handle, kind):
        if kind == pynvml.NVML_CLOCK_MEM:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 1980


def test_the_real_package_has_the_error_classes_that_are_caught():
    error = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert type(error) is pynvml.NVMLError_NotSupported
    assert isinstance(error, pynvml.NVMLError)


def test_without_a_driver_one_line_says_so(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    with GpuMeter() as meter:
        assert "NVML Shared Library Not Found" in meter.note
        assert "\n" not in meter.note
        assert meter.used_bytes() is meter.joules() is meter.driver() is None
        assert meter.facts() == []


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuMeter() as meter:
        assert "qwen3q[nvml]" in meter.note
        assert meter.used_bytes() is None


def test_memory_is_the_processs_own_where_it_is_listed(monkeypatch):
    driver = Driver().install(monkeypatch)
    with GpuMeter() as meter:
        driver.used[0] += 9000 * MIB
        driver.processes[0] = [(1, 4000 * MIB), (os.getpid(), 5000 * MIB)]
        assert meter.note == ""
        assert meter.used_bytes() == 5000 * MIB
    assert driver.started == 0


@pytest.mark.parametrize("listed", [[], [(os.getpid(), None)], [(1, 700 * MIB)]])
def test_memory_in_a_container_is_what_its_use_grew_by(monkeypatch, listed):
    driver = Driver().install(monkeypatch)
    driver.processes[0] = listed
    with GpuMeter() as meter:
        assert meter.used_bytes() is None
        driver.used[0] += 2000 * MIB
        assert meter.used_bytes() == 2000 * MIB


def test_energy_is_of_the_gpus_in_use(monkeypatch):
    driver = Driver(count=2).install(monkeypatch)
    with GpuMeter() as meter:
        assert meter.joules() is None
        driver.used[1] += 2000 * MIB
        before = meter.joules()
        driver.energy = [driver.energy[0] + 9_000_000, driver.energy[1] + 3_000]
        assert joules_per_token(before, meter.joules(), 6, 10**9) == pytest.approx(0.5)
        driver.used[0] += 1000 * MIB
        assert meter.used_bytes() == 3000 * MIB
        assert meter.joules() == pytest.approx(14_000 + 5_003)


def test_a_gpu_without_an_energy_counter_has_none(monkeypatch):
    driver = Driver(count=2).install(monkeypatch)
    driver.energy[1] = None
    with GpuMeter() as meter:
        driver.used = [used + 1000 * MIB for used in driver.used]
        assert meter.joules() is None
        assert meter.used_bytes() == 2000 * MIB


def test_a_short_run_has_no_energy():
    assert joules_per_token(1.0, 2.0, 10, 10**8) is None
    assert joules_per_token(None, 2.0, 10, 10**9) is None


def test_facts_leave_out_what_the_driver_does_not_say(monkeypatch):
    Driver(count=2).install(monkeypatch)
    with GpuMeter() as meter:
        first, second = meter.facts()
        assert (first.name, second.name) == ("NVIDIA H0", "NVIDIA H1")
        assert (first.sm_mhz, first.memory_mhz, first.memory_bytes) == (1980, None, 80 << 30)
        assert meter.driver() == "580.95"


def test_a_lost_gpu_is_a_note_not_a_traceback(monkeypatch):
    Driver().install(monkeypatch)

    def lost(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lost)
    with GpuMeter() as meter:
        assert "GPU is lost" in meter.note
        assert meter.used_bytes() is None


def test_importing_the_meter_does_not_import_pynvml():
    code = "import sys, qwen3q.evaluate.nvml; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
