"""One artefact's speed and memory, measured and predicted, as rows of ``report.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.nvml import GpuMeter
from qwen3q.evaluate.predicted import Estimator, known_gpus
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_tests import SpeedTest, speed_row
from qwen3q.memory.bandwidth import read_bandwidth
from qwen3q.memory.source import find_model
from qwen3q.process_memory import resident_bytes
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import model_threads

if TYPE_CHECKING:
    from qwen3q.evaluate.speed import Measured
    from qwen3q.memory.devices import DeviceMemory

_PARTS = ("weights", "kv", "compute", "rest")


@dataclass(frozen=True, slots=True)
class SpeedRun:
    """What one artefact's run gave.

    Attributes:
        rows: of ``speed[]``.
        memory: of ``memory[]``, one per device, for the largest context and batch.
        machine: what ran it, to go beside ``machine_facts``.
        llama_bench: the rows of one sequence under llama-bench's names; none from torch.
        note: what could not be measured, in a line; empty if nothing.
    """

    rows: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    machine: dict[str, Any]
    llama_bench: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


def run_speed(
    artefact: Artefact,
    options: SpeedOptions,
    *,
    gpu_layers: int = -1,
    device: str | None = None,
    progress: ProgressFn = silent,
) -> SpeedRun:
    """Times an artefact: a GGUF file in llama.cpp, a folder in torch.

    Args:
        gpu_layers: llama.cpp's; negative for all.
        device: torch's; None for the fastest there is.

    Raises:
        UsageError: a test that makes no sense.
        Qwen3qError: the model can't be run, or does not fit.
    """
    before = resident_bytes()
    with GpuMeter() as meter:
        if not artefact.is_gguf:
            from qwen3q.evaluate.speed_torch import run_torch

            return run_torch(artefact, options, device, meter, before, progress)
        return _run_llama(artefact, options, gpu_layers, meter, before, progress)


def artefact_facts(artefact: Artefact, engine: str) -> dict[str, Any]:
    """The keys that every row begins with."""
    return {
        "run": 0,
        "artefact": artefact.name,
        "format": artefact.format,
        "file_bytes": artefact.file_bytes,
        "engine": engine,
    }


def gpu_machine(meter: GpuMeter) -> dict[str, Any]:
    """GPUs and driver for ``machine``; empty without NVML."""
    gpus = [asdict(gpu) for gpu in meter.facts()]
    return {"driver": meter.driver(), "gpus": gpus} if gpus else {}


def _run_llama(
    artefact: Artefact,
    options: SpeedOptions,
    gpu_layers: int,
    meter: GpuMeter,
    before: int | None,
    progress: ProgressFn,
) -> SpeedRun:
    from qwen3q.evaluate.speed import UBATCH, llama_bench_row, measure_speed
    from qwen3q.llama.capi import VERSION, lib
    from qwen3q.llama.devices import gpu_devices
    from qwen3q.llama.model import LlamaModel, LoadOptions

    names = gpu_devices() if gpu_layers else []
    with LlamaModel(artefact.path, LoadOptions(gpu_layers=gpu_layers)) as model:
        threads = model_threads(options.threads, model.hidden_size)
        bandwidth = read_bandwidth(threads)
        measured = list(measure_speed(model, options, progress, meter))
        gpus = gpu_machine(meter)  # now, while the clocks are those of the run
        bench = [
            llama_bench_row(model, m.test, options) for m in measured if m.test.planned.batch == 1
        ]
    source = find_model(str(artefact.path))
    assert source.stored is not None
    estimator = Estimator(
        source.config,
        source.stored,
        UBATCH,
        None if gpu_layers < 0 else gpu_layers,
        known_gpus(names),
        max(bandwidth, read_bandwidth(threads)),
    )
    machine = gpus | {
        "devices": names,
        "gpu_layers": estimator.gpu_layers,
        "threads": threads,
        "read_gb_s": round(estimator.read_bandwidth / 1e9, 2),
        "llama_cpp": f"llama-cpp-python {VERSION}",
        "build": lib.llama_print_system_info().decode().strip(),
    }
    facts = artefact_facts(artefact, "llama.cpp")
    rows = [
        facts | speed_row(m.test) | {"predicted": estimator.speed(m.test.planned)} for m in measured
    ]
    largest = max(measured, key=lambda m: m.test.planned.cells)
    memory = [facts | row for row in memory_rows(largest, estimator, before)]
    return SpeedRun(rows, memory, machine, bench, meter.note)


def memory_rows(
    measured: Measured, estimator: Estimator, before: int | None
) -> list[dict[str, Any]]:
    """Measured and predicted bytes, one row per device.

    ``rest`` is what the process took beside llama.cpp's buffers: on the CPU from the growth of
    its resident set, on a GPU from NVML. Pages of a buffer that were never touched are not
    resident, and memory that an earlier model left is used again, so on the CPU it can't always
    be told. The prediction's rest is the driver's context and, on the CPU, the row of logits.

    Args:
        before: resident set before the model was loaded.
    """
    planned = measured.test.planned
    predicted = estimator.memory(planned)
    # another number of devices: llama.cpp chose among them otherwise than the estimator
    known = len(predicted) == len(measured.buffers)
    rows = []
    for index, buffers in enumerate(measured.buffers):
        on_cpu = index == len(measured.buffers) - 1
        held = _held(measured.test, len(measured.buffers) - 1, before, on_cpu=on_cpu)
        figures = (buffers.weights, buffers.kv, buffers.compute)
        rows.append(
            {
                "device": buffers.device,
                "context": planned.context,
                "batch": planned.batch,
                "kv_type": "f16",
                "ubatch": estimator.ubatch,
                "gpu_layers": estimator.gpu_layers,
                **_bytes((*figures, beyond(held, sum(figures) + buffers.repeated))),
                "predicted": _expected(
                    predicted[index], estimator.logits_bytes(planned) if on_cpu else 0
                )
                if known
                else None,
            }
        )
    return rows


def _expected(device: DeviceMemory, logits: int) -> dict[str, int | None]:
    """The estimator's parts of one device; its compute counts the host's logits, ours the rest."""
    figures = (device.weights, device.kv, device.compute - logits, device.overhead + logits)
    return _bytes(figures) | {"uncertainty_bytes": device.uncertainty}


def _held(test: SpeedTest, gpus: int, before: int | None, *, on_cpu: bool) -> int | None:
    if on_cpu:
        return growth(test.peak_bytes, before)
    return test.device_bytes if gpus == 1 else None


def beyond(held: int | None, known: int) -> int | None:
    """What is held beside the ``known`` bytes; None where that can't be told."""
    return held - known if held is not None and held > known else None


def growth(peak: int | None, before: int | None) -> int | None:
    """How much larger the resident set became; None where not known."""
    return None if peak is None or before is None else max(0, peak - before)


def _bytes(figures: Sequence[int | None]) -> dict[str, int | None]:
    return {f"{name}_bytes": value for name, value in zip(_PARTS, figures, strict=True)}
