"""File sizes and loaded sizes against plans: GGUF, transformers' table, vLLM's logs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from eval.memory.checks import Check, read_table
from qwen3q.memory import hf, vllm
from qwen3q.memory.gpus import MIB
from qwen3q.memory.settings import Settings
from qwen3q.memory.weights import release_weights
from qwen3q.models.catalog import Release, find_release
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FILE_TYPES

HEADER_BYTES = 5_962_500
"""Header of a published file (151,936 tokens, merges, template), and by how much it varies.

What a file has beyond its planned tensors must be such a header; one tensor in another type is
at least 130 kB off.
"""
_HEADER_SPREAD = 22_500 / HEADER_BYTES

ODD_GGUF = {
    ("unsloth/Qwen3-32B-GGUF", "IQ4_XS"): "24.3 MB more than any llama.cpp mix gives",
    ("bartowski or lmstudio-community", "Q4_K_M"): "custom mix",
    ("unknown (custom mix)", "Q3_K_L"): "custom mix",
}
_ROUNDING = {"listed-GB-2dp": 5e6, "listed-GB-1-2dp": 5e7, "log-GiB-2dp": 5.4e6}
_FORMATS = {
    "BF16": "bf16", "FP8": "fp8", "FP8-block128": "fp8", "NVFP4": "nvfp4",
    "GPTQ-Int8": "gptq:int8", "GPTQ-INT4": "gptq:int4", "GPTQ-Int4": "gptq:int4",
    "GPTQ-Int4-g128": "gptq:int4", "AWQ-INT4": "awq:int4", "AWQ-g128": "awq:int4",
    "AWQ": "awq:int4",
}  # fmt: skip


def gguf_checks(truth: Path) -> tuple[list[Check], list[Check]]:
    """Tensor bytes (by what a published file has beyond them) and file sizes."""
    tensors, files = [], []
    for row in read_table(truth, "gguf_file_sizes"):
        name = f"{row['model']} {row['quant']} ({row['repo']})"
        reason = _irreproducible(row)
        release = find_release(row["model"])
        if reason or release is None:
            files.append(Check(name, 0, 0, left_out=reason or "no such release"))
            continue
        config = release.config
        if "untied" in row["note"]:
            config = replace(config, tie_word_embeddings=False)
        plan = plan_gguf(
            release.title, config, FILE_TYPES[row["quant"].upper()],
            has_imatrix="imatrix" in row["variant"],
        )  # fmt: skip
        size = float(row["size_bytes"])
        if row["exactness"] == "tensor-data-only":
            tensors.append(Check(name, plan.tensor_bytes, size, limit=0.0))
        elif row["exactness"] == "exact":
            beyond = size - plan.tensor_bytes
            tensors.append(
                Check(f"{name}: beyond the tensors", beyond, HEADER_BYTES, _HEADER_SPREAD)
            )
            files.append(Check(name, plan.file_bytes, size, limit=0.0002))
        else:
            rounding = _ROUNDING.get(row["exactness"], 5e7) / size
            limit = None if row["repo"].startswith("unknown") else rounding + 0.0002
            files.append(Check(f"{name}, rounded", plan.file_bytes, size, limit))
    return tensors, files


def transformers_checks(truth: Path) -> list[Check]:
    """Qwen's table: weights, cache and workspace on one H20."""
    checks = []
    for row in read_table(truth, "official_speed_memory"):
        if row["engine"] != "Transformers" or not row["gpu_memory_mb"]:
            continue
        release, fmt = find_release(row["model"]), _FORMATS.get(row["quantization"])
        name = f"{row['model']} {row['quantization']} input {row['input_length']}"
        if release is None or fmt is None:
            checks.append(Check(name, 0, 0, left_out="unknown model or format"))
            continue
        tokens = int(row["input_length"]) + int(row["output_length"])
        settings = Settings(tokens, type_k="bf16", type_v="bf16")
        steady = hf.steady_memory(release.config, release_weights(release, fmt), settings)
        limit = 0.005 if fmt.startswith(("bf16", "gptq")) else 0.01
        if row["input_length"] == "1":
            limit = 0.04
        checks.append(Check(name, steady.total / MIB, float(row["gpu_memory_mb"]), limit))
    return checks


def vllm_load_checks(truth: Path) -> list[Check]:
    """ "Model loading took" of vLLM's logs, in GiB per GPU."""
    checks = []
    for row in read_table(truth, "awq_gptq_sizes"):
        label = row["format"].split(" ")[0]
        found = re.search(r"TP(\d+)", row["format"])
        checks.append(
            _load_check(
                f"{row['model']} {row['format']} {row['note']}".strip(), row["model"], label,
                int(found[1]) if found else 1, float(row["GiB"]), _not_a_load(row),
            )
        )  # fmt: skip
    for row in read_table(truth, "measured_memory"):
        if row["engine"] != "vLLM" or not row["weights_gpu_MiB"]:
            continue
        odd = "the ROCm fork keeps repacked copies" if "MI50" in row["gpu"] else ""
        checks.append(
            _load_check(
                f"{row['model']} {row['quant']} on {row['gpu']}", row["model"], row["quant"],
                int(row["n_gpus"] or 1), float(row["weights_gpu_MiB"]) / 1024, odd,
            )
        )  # fmt: skip
    return checks


def vllm_token_checks(truth: Path) -> tuple[list[Check], list[Check]]:
    """Tokens in a known pool, and the pool itself where the GPU and the utilization are known."""
    known, predicted = [], []
    for row in read_table(truth, "measured_memory"):
        release = find_release(row["model"])
        if row["engine"] != "vLLM" or not row["kv_MiB"] or release is None:
            continue
        kind = "fp8" if row["kv_type"] == "fp8" else "bf16"
        settings = Settings(int(row["ctx"] or 8192), type_k=kind, type_v=kind)
        name = f"{row['model']} {row['quant']} on {row['gpu']}"
        gpus = int(row["n_gpus"] or 1)
        pool = vllm.pool_of(release.config, settings, gpus, int(float(row["kv_MiB"]) * MIB))
        if row["kv_tokens"]:
            known.append(Check(name, pool.tokens, float(row["kv_tokens"]), 0.03))
        memory = re.match(r"(\d+) GB", row["gpu"])
        if memory and row["gpu_mem_util"] and row["quant"] in _FORMATS:
            total = float(row["gpu_mem_util"]) * int(memory[1]) * 1024
            weights = release_weights(release, _FORMATS[row["quant"]])
            load = vllm.load_bytes(release.config, weights, settings, gpus)
            left = total - (load + vllm.overhead_bytes(release.config)) / MIB
            predicted.append(Check(name, left, float(row["kv_MiB"])))
    return known, predicted


def _load_check(name: str, model: str, label: str, size: int, gib: float, odd: str) -> Check:
    release, fmt = find_release(model), _FORMATS.get(label)
    if odd or release is None or fmt is None:
        return Check(name, 0, 0, left_out=odd or "unknown model or format")
    release = _variant(release, model, name)
    settings = Settings(4096, type_k="bf16", type_v="bf16")
    load = vllm.load_bytes(release.config, release_weights(release, fmt), settings, size)
    return Check(name, load / 1024**3, gib, 0.015)


def _variant(release: Release, model: str, name: str) -> Release:
    """The 2507 release where the row says so, for its longer table of positions."""
    return (find_release(f"{model}-2507") or release) if "2507" in name else release


def _not_a_load(row: dict[str, str]) -> str:
    if "after load" not in row["what"]:
        return f"no load size: {row['what']}"
    return "the ROCm fork keeps repacked copies" if "MI50" in row["source"] else ""


def _irreproducible(row: dict[str, str]) -> str:
    quant = row["quant"].upper()
    odd = ODD_GGUF.get((row["repo"], row["quant"]), "")
    if odd or quant in FILE_TYPES:
        if "custom mix" in row["note"] and quant not in ("BF16", "F16", "Q8_0"):
            return "custom mix"
        if row["repo"] == "steampunque":
            return "custom mix"
        return odd
    return "a mix that no llama.cpp file type names"
