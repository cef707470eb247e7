"""Engines and speed against published figures (the report has every row)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen3q.memory import hf, vllm
from qwen3q.memory.estimate import estimate
from qwen3q.memory.gpus import MIB, Gpu, find_gpu
from qwen3q.memory.llamacpp import llama_memory
from qwen3q.memory.settings import Engine, Settings
from qwen3q.memory.source import find_model
from qwen3q.memory.speed import decode_seconds

BF16 = Settings(8192, type_k="bf16", type_v="bf16")


@pytest.mark.parametrize(
    ("model", "fmt", "length", "megabytes", "limit"),
    [
        ("qwen3-0.6b", "bf16", 6144, 2066, 0.005),
        ("qwen3-0.6b", "gptq:int8", 30720, 4347, 0.005),
        ("qwen3-0.6b", "fp8", 1, 1217, 0.04),
        ("qwen3-4b", "awq:int4", 14336, 5151, 0.01),
        ("qwen3-4b", "fp8", 6144, 6144, 0.01),
        ("qwen3-8b", "bf16", 30720, 20267, 0.005),
        ("qwen3-30b-a3b", "bf16", 14336, 59806, 0.005),
        ("qwen3-30b-a3b", "fp8", 30720, 33177, 0.01),
    ],
)
def test_transformers_on_qwens_published_table(
    model: str, fmt: str, length: int, megabytes: float, limit: float
) -> None:
    found = find_model(model)
    steady = hf.steady_memory(found.config, found.weights(fmt), BF16.at(length + 2048))
    assert steady.total / MIB == pytest.approx(megabytes, rel=limit)


@pytest.mark.parametrize(
    ("model", "fmt", "gpus", "gib"),
    [
        ("qwen3-8b", "awq:int4", 1, 5.7071),
        ("qwen3-14b", "awq:int4", 1, 9.3619),
        ("qwen3-14b", "nvfp4", 1, 9.97),
        ("qwen3-8b", "fp8", 1, 8.8),
        ("qwen3-4b-2507", "bf16", 1, 7.6065),
        ("qwen3-coder-30b-a3b", "bf16", 1, 56.9342),
        ("qwen3-30b-a3b", "gptq:int4", 1, 15.6066),
        ("qwen3-32b", "bf16", 2, 30.59),
        ("qwen3-30b-a3b", "bf16", 4, 14.2474),
    ],
)
def test_vllm_loads_what_its_logs_say(model: str, fmt: str, gpus: int, gib: float) -> None:
    found = find_model(model)
    load = vllm.load_bytes(found.config, found.weights(fmt), BF16.at(4096), gpus)
    assert load / 1024**3 == pytest.approx(gib, rel=0.015)


@pytest.mark.parametrize(
    ("model", "kind", "mib", "tokens"),
    [
        ("qwen3-8b", "bf16", 30474.2, 216704),
        ("qwen3-30b-a3b", "fp8", 4137.0, 88176),
        ("qwen3-4b-2507", "bf16", 35553.3, 252800),
    ],
)
def test_vllm_pools_hold_the_tokens_its_logs_say(
    model: str, kind: str, mib: float, tokens: int
) -> None:
    settings = replace(BF16, type_k=kind, type_v=kind)
    pool = vllm.pool_of(find_model(model).config, settings, 1, int(mib * MIB))
    assert pool.tokens == pytest.approx(tokens, rel=0.03)
    assert pool.tokens % vllm.BLOCK_TOKENS == 0


def test_vllm_splits_the_cache_until_heads_run_out() -> None:
    config = find_model("qwen3-32b").config
    whole = vllm.token_bytes(config, BF16, 1)
    assert vllm.token_bytes(config, BF16, 4) * 4 == whole
    assert vllm.token_bytes(config, BF16, 16) * 8 == whole


def test_vllm_says_that_it_will_not_start() -> None:
    found = find_model("qwen3-32b")
    run = estimate(
        "", found.config, found.weights("bf16"), Engine.VLLM, BF16, [find_gpu("RTX 4090")]
    )
    assert run.pool is not None
    assert run.pool.tokens == 0
    assert run.max_context == 0


@pytest.mark.parametrize(
    ("model", "gpu", "depth", "tokens_per_second"),
    [
        ("qwen3-14b", "RTX 4080", 64, 66.49),
        ("qwen3-14b", "RTX 3080 10GB", 64, 65.09),
        ("qwen3-30b-a3b", "RTX PRO 6000 Blackwell", 64, 251.61),
        ("qwen3-0.6b", "RTX 3060 12GB", 8256, 172.29),
        ("qwen3-1.7b", "RTX 3060 12GB", 2112, 180.44),
        ("qwen3-8b", "RTX 5070", 170, 102.95),
        ("qwen3-32b", "RX 7900 XT", 170, 31.58),
        ("qwen3-30b-a3b", "RX 7900 XT", 170, 155.0),
    ],
)
def test_decode_speed_of_published_runs(
    model: str, gpu: str, depth: int, tokens_per_second: float
) -> None:
    found, part = find_model(model), find_gpu(gpu)
    weights, settings = found.weights("gguf:Q4_K_M"), Settings(max(4096, depth))
    devices = llama_memory(found.config, weights, settings, [part])
    seconds = decode_seconds(found.config, weights, settings, Engine.LLAMA_CPP, devices, depth)
    assert 1 / seconds == pytest.approx(tokens_per_second, rel=0.08)


@pytest.mark.parametrize(
    ("model", "gpu", "tokens_per_second"),
    [
        ("qwen3-8b", "RX 7800 XT", 1855.04),
        ("qwen3-14b", "RTX 4080", 3866.13),
        ("qwen3-14b", "RTX 3080 10GB", 2341.71),
        ("qwen3-30b-a3b", "RTX PRO 6000 Blackwell", 7640.08),
    ],
)
def test_prefill_speed_of_published_runs(model: str, gpu: str, tokens_per_second: float) -> None:
    """llama-bench's pp512."""
    found, on = find_model(model), [find_gpu(gpu)]
    weights = found.weights("gguf:Q4_K_M")
    run = estimate("", found.config, weights, Engine.LLAMA_CPP, Settings(4096), on)
    assert run.speed is not None
    assert run.speed.prefill == pytest.approx(tokens_per_second, rel=0.09)


def test_two_equal_gpus_in_a_row_decode_as_fast_as_one() -> None:
    found, part = find_model("qwen3-8b"), find_gpu("RTX 3090")

    def speed(gpus: list[Gpu]) -> float:
        run = estimate(
            "", found.config, found.weights("gguf:Q4_K_M"), Engine.LLAMA_CPP, Settings(4096), gpus
        )
        assert run.speed is not None
        return run.speed.decode

    assert speed([part, part]) == pytest.approx(speed([part]), rel=0.01)


def test_layers_weigh_what_an_older_log_says() -> None:
    """Qwen3-30B-A3B Q4_K_M, "30/49 layers" (llama.cpp issue 13729), by builds that counted from
    the last layer and left the output on the CPU."""
    weights = find_model("qwen3-30b-a3b").weights("gguf:Q4_K_M")
    on_gpu = sum(layer.total for layer in weights.layers[-30:])
    assert on_gpu / MIB == pytest.approx(10750.86, abs=0.01)
    assert (weights.total - on_gpu) / MIB == pytest.approx(6940.48, abs=0.01)
