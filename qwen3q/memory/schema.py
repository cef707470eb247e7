"""Estimates as JSON: the fields that scripts read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen3q.memory.advice import Advice
from qwen3q.memory.devices import DeviceMemory
from qwen3q.memory.estimate import Estimate, Verdict, on_single_gpus
from qwen3q.memory.fit import Fit
from qwen3q.memory.gpus import Family, Gpu
from qwen3q.memory.settings import Engine
from qwen3q.models.config import Qwen3Config


def estimate_json(found: Estimate, advice: Sequence[Advice] = ()) -> dict[str, Any]:
    """One estimate; sums count GPUs, ``devices`` the CPU too; what does not fit has no speed."""
    settings, weights = found.settings, found.weights
    speed = None if found.verdict is Verdict.NO else found.speed
    fields: dict[str, Any] = {
        "model": found.model,
        "quantization": weights.format,
        "engine": found.engine.value,
        "context": settings.context,
        "parallel": settings.parallel,
        "kv_types": [settings.type_k, settings.type_v],
        "file_bytes": weights.file_bytes,
        "tensor_bytes": weights.total,
        "bits_per_weight": round(weights.bits_per_weight, 4),
        "weights_bytes": sum(d.weights for d in found.on_gpus),
        "kv_bytes": sum(d.kv for d in found.on_gpus),
        "compute_bytes": sum(d.compute for d in found.on_gpus),
        "overhead_bytes": sum(d.overhead for d in found.on_gpus),
        "total_bytes": found.total,
        "uncertainty_bytes": found.uncertainty,
        "fits": None if found.verdict is None else found.verdict is not Verdict.NO,
        "verdict": None if found.verdict is None else found.verdict.value,
        "max_context": found.max_context,
        "decode_tokens_per_second": _rounded(speed.decode if speed else None),
        "decode_tokens_per_second_at_context": _rounded(speed.decode_full if speed else None),
        "prefill_tokens_per_second": _rounded(speed.prefill if speed else None),
        "speed_error_band": speed.band if speed else None,
        "devices": [device_json(device) for device in found.devices],
        "notes": list(found.notes),
        "advice": [
            {"change": a.text, "options": a.options, "total_bytes": a.total} for a in advice
        ],
    }
    if found.engine is Engine.VLLM:
        pool = found.pool
        fields["kv_pool_bytes"] = pool.nbytes if pool else None
        fields["kv_tokens"] = pool.tokens if pool else None
        fields["concurrency"] = round(pool.concurrency, 2) if pool else None
    return fields


def device_json(device: DeviceMemory) -> dict[str, Any]:
    """One device of an estimate."""
    return {
        "name": device.name,
        "gpu": device.gpu.name if device.gpu and device.gpu.family is not Family.CPU else None,
        "weights_bytes": device.weights,
        "kv_bytes": device.kv,
        "compute_bytes": device.compute,
        "overhead_bytes": device.overhead,
        "total_bytes": device.total,
        "uncertainty_bytes": device.uncertainty,
        "usable_bytes": device.gpu.usable_bytes if device.gpu else None,
        "left_bytes": device.left,
    }


def gpu_json(gpu: Gpu) -> dict[str, Any]:
    """One part of the catalog, or the processor."""
    return {
        "name": gpu.name,
        "class": gpu.kind,
        "memory_bytes": gpu.memory_bytes,
        "usable_bytes": gpu.usable_bytes,
        "uncertain": list(gpu.uncertain),
    }


def gpus_json(
    config: Qwen3Config, runs: Sequence[Estimate], catalog: Sequence[Gpu]
) -> list[dict[str, Any]]:
    """Every part of the catalog by itself: the verdict on one run, or on several the longest
    context of ``runs`` that it holds, by quantization.

    Args:
        runs: estimates for one GPU of unknown size.
    """
    entries = {gpu.name: gpu_json(gpu) for gpu in catalog}
    for run in runs:
        fmt, context = run.weights.format, run.settings.context
        for gpu, verdict, left in on_single_gpus(run, config, catalog):
            entry = entries[gpu.name]
            holds = verdict is not Verdict.NO
            entry["fits"] = holds or entry.get("fits", False)
            if len(runs) == 1:
                entry |= {"verdict": verdict.value, "left_bytes": left}
                continue
            longest = entry.setdefault("longest_context", {})
            longest[fmt] = max(context if holds else 0, longest.get(fmt, 0))
    return list(entries.values())


def fit_json(fit: Fit) -> dict[str, Any]:
    """One choice of ``fit``."""
    fields = estimate_json(fit.estimate)
    fields["expected_quality"] = round(fit.quality, 3)
    fields["parameters"] = fit.release.parameters
    fields["command"] = fit.command
    return fields


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
