"""llama.cpp's buffers, held against llama.cpp's own dry-run allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from qwen3q.errors import LlamaError, MissingPackageError
from qwen3q.llama.oracle import Load, dry_run, load_of, pseudo_gpus, write_header
from qwen3q.memory import llamacpp
from qwen3q.memory.llamacpp import llama_memory, output_bytes
from qwen3q.memory.settings import Settings
from qwen3q.memory.weights import release_weights, weights_of_plan
from qwen3q.models.catalog import Release, find_release
from qwen3q.models.config import Qwen3Config
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import file_type

BASE = Settings(4096)
BuffersByDevice = dict[str, tuple[int, int, int]]
"""Model, context and compute bytes."""


def release(name: str) -> Release:
    found = find_release(name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def measured() -> Iterator[Callable[..., BuffersByDevice]]:
    """llama.cpp's own figures for a file, settings and a split, from a process of its own: the
    devices that stand in for GPUs stay with llama.cpp as long as its process lives."""
    try:
        with pseudo_gpus(2) as endpoints, ProcessPoolExecutor(1, get_context("spawn")) as process:

            def run(path: Path, settings: Settings, split: tuple[float, ...]) -> BuffersByDevice:
                found = process.submit(dry_run, path, load_of(settings, split), endpoints).result()
                return {name: (b.model, b.context, b.compute) for name, b in found.items()}

            yield run
    except MissingPackageError:
        pytest.skip("llama-cpp-python was built without -DGGML_RPC=ON")


def predicted(config: Qwen3Config, quant: str, settings: Settings, gpus: int) -> BuffersByDevice:
    weights = weights_of_plan(plan_gguf("", config, file_type(quant)), config)
    found = {}
    for device in llama_memory(config, weights, settings, (None,) * gpus):
        host = output_bytes(config, settings) if device.name == "CPU" else 0
        found[device.name] = (device.weights, device.kv, device.compute - host)
    return found


SHAPES = {
    "short": BASE.at(1000),
    "long": BASE.at(131072),
    "small batch": replace(BASE, ubatch=64),
    "large batch": replace(BASE, ubatch=2048, context=32768),
    "q8_0 cache": replace(BASE, type_k="q8_0", type_v="q8_0"),
    "mixed cache": replace(BASE, type_k="f16", type_v="q4_0"),
    "no flash attention": replace(BASE, flash_attention=False),
    "no flash attention, q8_0 keys": replace(BASE, flash_attention=False, type_k="q8_0"),
    "four sequences": replace(BASE, parallel=4),
    "four sequences without flash attention": replace(BASE, parallel=4, flash_attention=False),
}


@pytest.mark.peer
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"])
def test_every_buffer_equals_the_dry_run(
    name: str, shape: str, tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    config = release(name).config
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf(name, config, file_type("Q4_K_M")))
    for gpus in (0, 1, 2):
        truth = measured(path, SHAPES[shape], (1.0,) * gpus)
        assert predicted(config, "Q4_K_M", SHAPES[shape], gpus) == truth


@pytest.mark.peer
@pytest.mark.parametrize("name", ["qwen3-4b", "qwen3-14b", "qwen3-32b", "qwen3-235b-a22b"])
def test_every_size_of_model_equals_the_dry_run(
    name: str, tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    config = release(name).config
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf(name, config, file_type("Q6_K")))
    settings = BASE.at(32768)
    for gpus in (1, 2):
        truth = measured(path, settings, (1.0,) * gpus)
        assert predicted(config, "Q6_K", settings, gpus) == truth


@pytest.mark.peer
@pytest.mark.parametrize("gpu_layers", [0, 1, 10, 28, 29])
def test_layers_on_the_cpu_equal_the_dry_run(
    gpu_layers: int, tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    config = release("qwen3-1.7b").config
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf("", config, file_type("Q8_0")))
    settings = replace(BASE, gpu_layers=gpu_layers)
    for gpus in (1, 2):
        truth = measured(path, settings, (1.0,) * gpus)
        assert predicted(config, "Q8_0", settings, gpus) == truth


@pytest.mark.peer
@pytest.mark.parametrize("layers", [1, 20, 48])
def test_experts_on_the_cpu_equal_the_dry_run(
    layers: int, tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    config = release("qwen3-30b-a3b").config
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf("", config, file_type("Q4_K_M")))
    settings = replace(BASE, cpu_experts=layers)
    for gpus in (1, 2):
        truth = measured(path, settings, (1.0,) * gpus)
        assert predicted(config, "Q4_K_M", settings, gpus) == truth
    assert layers < 48 or truth["CPU"][0] > 10 * truth["GPU0"][0]


@pytest.mark.peer
def test_a_model_of_odd_shape_equals_the_dry_run(
    tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    """Layer counts around the simulated few, a head of 64, untied where the release is tied."""
    base = replace(release("qwen3-0.6b").config, tie_word_embeddings=False, head_dim=64)
    for layers in (1, 2, 3, 5, 9):
        config = replace(base, num_hidden_layers=layers)
        path = tmp_path / f"{layers}.gguf"
        write_header(path, config, plan_gguf("", config, file_type("Q4_0")))
        for gpus in (0, 1):
            truth = measured(path, BASE, (1.0,) * gpus)
            assert predicted(config, "Q4_0", BASE, gpus) == truth


SMALL = Qwen3Config("qwen3", 512, 5, 8, 2, 64, 1056, 1000, True, 40960, 1e6, 1e-6)
ODD = {
    "F32 cache": (SMALL, replace(BASE, type_k="f32", type_v="f32"), 1),
    "F32 cache without flash attention": (
        SMALL, replace(BASE, type_k="f32", type_v="f32", flash_attention=False), 1
    ),
    "heads that can't be rotated": (
        replace(SMALL, head_dim=96), replace(BASE, type_k="q8_0", type_v="q4_0"), 1
    ),
    "one expert per token": (
        replace(
            SMALL, model_type="qwen3_moe", hidden_size=2560, num_experts=4, num_experts_per_tok=1,
            moe_intermediate_size=96,
        ), replace(BASE, gpu_layers=2), 1,
    ),
    "a vocabulary of odd length": (replace(SMALL, vocab_size=1001, head_dim=32), BASE, 1),
    "fragments that come late": (
        replace(
            SMALL, hidden_size=768, num_hidden_layers=6, num_attention_heads=5,
            num_key_value_heads=1, intermediate_size=128,
        ), Settings(255, 16, "iq4_nl", ubatch=4096), 1,
    ),
}  # fmt: skip
"""What no release has, but a model that somebody changed, or an unusual option."""


@pytest.mark.peer
@pytest.mark.parametrize("name", ODD)
def test_odd_models_and_caches_equal_the_dry_run(
    name: str, tmp_path: Path, measured: Callable[..., BuffersByDevice]
) -> None:
    config, settings, gpus = ODD[name]
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf("", config, file_type("Q6_K")))
    truth = measured(path, settings, (1.0,) * gpus)
    assert predicted(config, "Q6_K", settings, gpus) == truth


def test_simulated_layers_have_the_peak_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = release("qwen3-30b-a3b").config
    weights = release_weights(release("qwen3-30b-a3b"), "gguf:Q4_K_M")
    for settings in (BASE, replace(BASE, flash_attention=False, gpu_layers=31)):
        few = llama_memory(config, weights, settings, (None, None))
        with monkeypatch.context() as patch:
            patch.setattr(llamacpp, "_representative", lambda layers, experts: range(len(layers)))
            assert llama_memory(config, weights, settings, (None, None)) == few


def test_the_oracle_refuses_what_llama_cpp_refuses(tmp_path: Path) -> None:
    config = release("qwen3-0.6b").config
    path = tmp_path / "model.gguf"
    write_header(path, config, plan_gguf("", config, file_type("Q8_0")))
    with pytest.raises(LlamaError, match="refuses"):
        dry_run(path, Load(context=512, type_v="q8_0", flash_attention=False))
    path.write_bytes(b"no model")
    with pytest.raises(LlamaError, match="can't load"):
        dry_run(path, Load(context=512))
