"""Predicted against published decode speed."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from eval.memory.checks import Check, read_table
from qwen3q.errors import UsageError
from qwen3q.memory.estimate import estimate
from qwen3q.memory.gpus import Family, Gpu, find_gpu
from qwen3q.memory.settings import Engine, Settings
from qwen3q.memory.source import find_model
from qwen3q.memory.speed import decode_seconds

DISCRETE = (Family.NVIDIA, Family.PASCAL, Family.RADEON)
_ENGINES = {"llama.cpp": Engine.LLAMA_CPP, "llamacpp": Engine.LLAMA_CPP, "vllm": Engine.VLLM,
            "ollama": Engine.LLAMA_CPP}  # fmt: skip
_REASONS = {
    "not a healthy setup": "marked as misconfigured",
    "IMPLAUSIBLE": "marked as implausible",
    "exceeds VRAM": "partial offload, split unknown",
    "hand-entered": "hand-entered",
    "unlabelled": "hardware unstated",
}
_GPUS = {"mac mini m1": "Apple M1", "apple m1 m1 max": "Apple M1 Max"}
_MODELS = (
    ("deepseek-r1-0528-qwen3-8b", "qwen3-8b"), ("qwen3-30b-a3b", "qwen3-30b-a3b"),
    ("qwen3-235b-a22b", "qwen3-235b-a22b"), ("qwen3-0.6b", "qwen3-0.6b"),
    ("qwen3-1.7b", "qwen3-1.7b"), ("qwen3-4b", "qwen3-4b"), ("qwen3-8b", "qwen3-8b"),
    ("qwen3-14b", "qwen3-14b"), ("qwen3-32b", "qwen3-32b"),
)  # fmt: skip
_CHAT_DEPTH = 170


def speed_checks(truth: Path) -> dict[Family, list[Check]]:
    """Decode speed by family of GPU."""
    found: dict[Family, list[Check]] = defaultdict(list)
    for row in read_table(truth, "measured_speed"):
        if not row["gen_tok_s"]:
            continue
        name = f"{row['model']} {row['quant']} on {row['gpu']}, {row['gen_test']}"
        reason = next((why for mark, why in _REASONS.items() if mark in row["note"]), "")
        reason = reason or _unusable(row)
        gpu = None if reason else _gpu(row["gpu"])
        if gpu is None:
            found[_family(row["gpu"])].append(
                Check(name, 0, 0, left_out=reason or "GPU not in the catalog")
            )
            continue
        depth = _depth(row)
        speed = predicted_speed(row, gpu, depth)
        found[gpu.family].append(Check(f"{name} at {depth}", speed, float(row["gen_tok_s"])))
    return found


def predicted_speed(row: dict[str, str], gpu: Gpu, depth: int) -> float:
    """Tokens per second of one row."""
    engine = _ENGINES[row["engine"].split(" ")[0].lower()]
    model = find_model(_model(row["model"]))
    kind = row["kv_type"] or "f16"
    if engine is Engine.VLLM:
        kind = "bf16"
    settings = Settings(max(4096, depth + 512), type_k=kind, type_v=kind)
    weights = model.weights(_format(row["quant"], engine))
    run = estimate(
        model.title, model.config, weights, engine, settings,
        [gpu] * int(row["n_gpus"] or 1), find_max_context=False,
    )  # fmt: skip
    return 1 / decode_seconds(model.config, weights, settings, engine, run.devices, depth)


def _model(text: str) -> str:
    lowered = text.lower()
    return next(name for part, name in _MODELS if part in lowered)


def _format(quant: str, engine: Engine) -> str:
    if engine is Engine.VLLM:
        return {"BF16": "bf16", "AWQ": "awq:int4"}[quant]
    return {"UD-Q4_K_XL": "gguf:Q4_K_M", "UD-Q3_K_XL": "gguf:Q3_K_M"}.get(quant, f"gguf:{quant}")


def _gpu(text: str) -> Gpu | None:
    base = re.sub(r"\(.*?\)", "", text).strip()
    base = _GPUS.get(base.lower(), base)
    try:
        return find_gpu(base)
    except UsageError:
        return None


def _family(text: str) -> Family:
    gpu = _gpu(text)
    return gpu.family if gpu else Family.UNKNOWN


def _depth(row: dict[str, str]) -> int:
    """Tokens in the cache on average while the row was measured."""
    made = re.match(r"tg(\d+)", row["gen_test"])
    half = int(made[1]) // 2 if made and int(made[1]) else 0
    if "depth=p" in row["note"]:
        return int(row["ctx_or_depth"]) + half
    prompt = re.match(r"pp(\d+)", row["prompt_test"])
    if "llama-server" in row["note"] and prompt:
        return int(prompt[1]) + half
    return half or _CHAT_DEPTH


def _unusable(row: dict[str, str]) -> str:
    engine = row["engine"].split(" ")[0].lower()
    if engine not in _ENGINES:
        return f"engine {engine} is not estimated"
    if row["quant"] not in ("BF16", "AWQ", "UD-Q4_K_XL", "UD-Q3_K_XL") and not re.fullmatch(
        r"(I?Q\d_\w+|BF16|F16)", row["quant"]
    ):
        return f"unknown quantization {row['quant']}"
    if not any(part in row["model"].lower() for part, _ in _MODELS):
        return "unknown model"
    return ""
