"""Verdicts, limits, the longest context, advice and fit: properties that must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen3q.errors import CheckpointError, SourceError, UsageError
from qwen3q.memory.advice import advise
from qwen3q.memory.estimate import Estimate, Verdict, estimate, on_single_gpus
from qwen3q.memory.fit import fitting, possible_runs
from qwen3q.memory.gpus import Gpu, custom_gpu, find_gpu, gpus
from qwen3q.memory.quality import expected_quality
from qwen3q.memory.settings import Engine, Settings, check_tensor_parallel, kv_types
from qwen3q.memory.source import find_model
from qwen3q.memory.weights import release_weights
from qwen3q.models.catalog import catalog, find_release


def run(
    name: str,
    fmt: str,
    settings: Settings,
    on: list[Gpu],
    engine: Engine = Engine.LLAMA_CPP,
) -> Estimate:
    model = find_model(name)
    return estimate(model.title, model.config, model.weights(fmt), engine, settings, on)


@pytest.mark.parametrize(
    ("name", "fmt", "engine", "kind"),
    [
        ("qwen3-8b", "gguf:Q4_K_M", Engine.LLAMA_CPP, "f16"),
        ("qwen3-30b-a3b", "gguf:Q3_K_M", Engine.LLAMA_CPP, "q8_0"),
        ("qwen3-8b", "awq:int4", Engine.VLLM, "bf16"),
        ("qwen3-4b", "bf16", Engine.TRANSFORMERS, "bf16"),
    ],
)
def test_the_longest_context_fits_and_the_next_does_not(
    name: str, fmt: str, engine: Engine, kind: str
) -> None:
    settings = Settings(1024, type_k=kind, type_v=kind)
    card = [custom_gpu(find_gpu("RTX 5070 Ti").usable_bytes, like=find_gpu("RTX 5070 Ti"))]
    longest = run(name, fmt, settings, card, engine).max_context
    assert longest
    assert longest % 256 == 0
    assert run(name, fmt, settings.at(longest), card, engine).verdict is not Verdict.NO
    if longest < 131072:
        assert run(name, fmt, settings.at(longest + 256), card, engine).verdict is Verdict.NO


def test_a_safetensors_file_is_estimated_beside_its_config(demo_folder, tmp_path) -> None:
    path = demo_folder / "model.safetensors"
    stored = find_model(str(path)).stored
    assert stored is not None
    assert (stored.format, stored.file_bytes) == ("bf16", path.stat().st_size)
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=r"no config\.json beside it"):
        find_model(str(lone))
    for name in ("none.gguf", "none.safetensors"):
        with pytest.raises(SourceError, match="There is no file"):
            find_model(str(tmp_path / name))


def test_verdicts_by_the_uncertainty() -> None:
    found = run("qwen3-8b", "gguf:Q4_K_M", Settings(8192), [custom_gpu(64 << 30)])
    for nbytes, verdict in (
        (found.total - 1, Verdict.NO),
        (found.total, Verdict.TIGHT),
        (found.total + found.uncertainty, Verdict.FITS),
    ):
        assert (
            run("qwen3-8b", "gguf:Q4_K_M", Settings(8192), [custom_gpu(nbytes)]).verdict is verdict
        )


@pytest.mark.parametrize(("context", "blocks"), [(1, 1), (16, 1), (17, 2), (8192, 512)])
def test_vllms_cache_is_whole_blocks_of_16_tokens_per_sequence(context: int, blocks: int) -> None:
    """Qwen3-8B has 36 layers with 8 heads of 128 for keys and for values, in two bytes."""
    on = [find_gpu("H100 80GB")]
    for parallel in (1, 3):
        found = run("qwen3-8b", "bf16", Settings(context, parallel=parallel), on, Engine.VLLM)
        assert found.devices[0].kv == parallel * blocks * 16 * 36 * 2 * 8 * 128 * 2
    halves = run("qwen3-8b", "bf16", Settings(context), on * 2, Engine.VLLM)
    assert halves.devices[1].kv == blocks * 16 * 36 * 2 * 4 * 128 * 2


def test_a_gpu_by_itself_gets_the_verdict_of_a_run_on_it() -> None:
    model = find_model("qwen3-14b")
    settings = Settings(16384, type_k="q8_0", type_v="q8_0")
    anywhere = run("qwen3-14b", "gguf:Q4_K_M", settings, [])
    for gpu, verdict, left in on_single_gpus(anywhere, model.config, gpus()[::17]):
        found = run("qwen3-14b", "gguf:Q4_K_M", settings, [gpu])
        assert found.verdict is verdict
        assert found.devices[0].left == left


@pytest.mark.parametrize(
    ("name", "fmt", "card"),
    [
        ("qwen3-32b", "gguf:Q6_K", "RTX 4090"),
        ("qwen3-30b-a3b", "gguf:Q4_K_M", "RTX 3060 12GB"),
    ],
)
def test_advice_makes_it_fit(name: str, fmt: str, card: str) -> None:
    model, on = find_model(name), [find_gpu(card)]
    found = run(name, fmt, Settings(32768), on)
    assert found.verdict is Verdict.NO
    advice = advise(model, found, on)
    assert advice
    for change in advice:
        assert change.total <= on[0].usable_bytes
        option, _, value = change.options.partition(" ")
        settings, quant = Settings(32768), fmt
        if option == "--offload-experts":
            settings = replace(settings, cpu_experts=int(value))
            fewer = replace(settings, cpu_experts=int(value) - 1)
            assert run(name, fmt, fewer, on).verdict is Verdict.NO
        elif option == "--gpu-layers":
            settings = replace(settings, gpu_layers=int(value))
        elif option == "--quant":
            quant = value
        assert run(name, quant, settings, on).verdict is not Verdict.NO


@pytest.mark.parametrize(
    ("name", "fmt", "engine", "settings", "card", "option"),
    [
        ("qwen3-8b", "gguf:Q4_K_M", Engine.LLAMA_CPP, Settings(36864, flash_attention=False),
         "RTX 3060 12GB", "without --no-flash-attn"),
        ("qwen3-8b", "gguf:Q4_K_M", Engine.LLAMA_CPP, Settings(40960), "RTX 3080 10GB",
         "--kv q8_0"),
        ("qwen3-8b", "gguf:Q4_K_M", Engine.LLAMA_CPP, Settings(16384, parallel=8),
         "RTX 3060 12GB", "--parallel 1"),
        ("qwen3-8b", "awq:int4", Engine.VLLM, Settings(40960, type_k="bf16", type_v="bf16"),
         "RTX 3060 12GB", "--kv fp8"),
    ],
)  # fmt: skip
def test_what_is_wasteful_is_told_first(
    name: str, fmt: str, engine: Engine, settings: Settings, card: str, option: str
) -> None:
    model, on = find_model(name), [find_gpu(card)]
    found = run(name, fmt, settings, on, engine)
    assert found.verdict is Verdict.NO
    assert advise(model, found, on)[0].options == option


def test_what_fits_needs_no_advice() -> None:
    model, on = find_model("qwen3-4b"), [find_gpu("RTX 4090")]
    assert advise(model, run("qwen3-4b", "gguf:Q4_K_M", Settings(8192), on), on) == []


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (Settings(131073), "131072"),
        (Settings(100_000, yarn=2.0), "--yarn 4"),
        (Settings(8192, yarn=8.0), "up to 4"),
        (Settings(8192, type_v="q8_0", flash_attention=False), "--kv f16/f16"),
        (Settings(8192, cpu_experts=3), "--gpu-layers"),
    ],
)
def test_refusals_name_a_legal_choice(settings: Settings, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("qwen3-8b", "gguf:Q4_K_M", settings, [])
    assert hint in caught.value.hint


def test_cache_types_by_engine() -> None:
    assert kv_types(None, Engine.LLAMA_CPP) == ("f16", "f16")
    assert kv_types("q8_0/q4_0", Engine.LLAMA_CPP) == ("q8_0", "q4_0")
    assert kv_types("auto", Engine.VLLM) == ("bf16", "bf16")
    with pytest.raises(UsageError) as caught:
        kv_types("q4_k", Engine.LLAMA_CPP)
    assert "q4_1" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        kv_types("q8_0", Engine.VLLM)
    assert "fp8" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "fmt", "count", "near"),
    [
        ("qwen3-32b", "bf16", 3, "2 or 4"),  # 64 heads
        ("qwen3-14b", "bf16", 5, "4 or 8"),  # 40 heads, but 8 of keys and values
        ("qwen3-30b-a3b", "gptq:int4", 4, "Nearest: 2"),  # 768 inputs in groups of 128
        ("qwen3-32b", "bf16", 63, "32 or 64"),
    ],
)
def test_tensor_parallelism_must_divide_heads_and_groups(
    name: str, fmt: str, count: int, near: str
) -> None:
    config = find_model(name).config
    check_tensor_parallel(config, fmt, 2)
    with pytest.raises(UsageError) as caught:
        check_tensor_parallel(config, fmt, count)
    assert near in caught.value.hint


def test_nearest_to_two_gpus_is_one_gpu() -> None:
    with pytest.raises(UsageError) as caught:
        check_tensor_parallel(find_model("demo").config, "fp8", 2)
    assert caught.value.hint == "Nearest: 1 GPU."


@pytest.mark.parametrize(
    ("fmt", "engine"),
    [
        ("awq:int4", Engine.LLAMA_CPP), ("gguf:Q8_0", Engine.VLLM), ("bnb:int8", Engine.VLLM),
        ("gptq:int4", Engine.TRANSFORMERS),
    ],
)  # fmt: skip
def test_formats_that_an_engine_does_not_read(fmt: str, engine: Engine) -> None:
    with pytest.raises(UsageError) as caught:
        run("qwen3-30b-a3b", fmt, Settings(8192, type_k="bf16", type_v="bf16"), [], engine)
    assert caught.value.hint


def test_fit_lists_what_fits_best_first() -> None:
    card = find_gpu("RTX 3060 12GB")
    found = fitting(possible_runs([card], Settings(16384)), min_speed=20)
    assert found
    assert all(choice.estimate.total <= card.usable_bytes for choice in found)
    assert all(
        choice.estimate.speed and choice.estimate.speed.decode_full >= 20 for choice in found
    )
    assert [c.quality for c in found] == sorted((c.quality for c in found), reverse=True)
    assert found[0].release.name == "qwen3-14b"
    assert (
        found[0].command
        == f"qwen3q quantize Qwen/Qwen3-14B --to {found[0].estimate.weights.format}"
    )


def test_only_experts_are_offered_in_the_type_for_experts() -> None:
    runs = possible_runs([find_gpu("RTX 3060 12GB")], Settings(16384))
    offered = [release for release, run in runs if run.weights.format == "gguf:MXFP4_MOE"]
    assert offered
    assert all(release.config.is_moe for release in offered)


def test_expected_quality_orders_sizes_and_bits() -> None:
    def quality(name: str, fmt: str) -> float:
        release = find_release(name)
        assert release is not None
        return expected_quality(release, release_weights(release, fmt))

    sizes = [r.name for r in catalog() if not r.config.is_moe and "2507" not in r.name]
    whole = [quality(name, "bf16") for name in sizes]
    assert whole == sorted(whole)
    bits = [quality("qwen3-8b", f"gguf:{t}") for t in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "Q8_0")]
    assert bits == sorted(bits)
    assert quality("qwen3-4b-2507", "bf16") > quality("qwen3-4b", "bf16")
    assert quality("qwen3-coder-30b-a3b", "bf16") < quality("qwen3-30b-a3b", "bf16")
    assert quality("qwen3-8b", "gguf:Q4_0") < quality("qwen3-8b", "gguf:Q4_K_S")
    assert quality("qwen3-32b", "gguf:Q4_K_M") > quality("qwen3-14b", "bf16")
    assert quality("qwen3-8b", "gguf:Q4_K_M") > quality("qwen3-14b", "gguf:IQ1_S")
