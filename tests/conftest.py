"""Models for the tests: the embedded demo, and small random ones made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3q.models.config import parse_config
from qwen3q.models.tensors import Role, model_tensors
from qwen3q.threads import calm_openmp

# Before torch is loaded: on models this small, threads wait for each other longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
calm_openmp()

# A shell's background ignores one, nohup the other, and what tests start would inherit that.
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, signal.SIGINT)
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return Path(str(resources.files("qwen3q.data") / "demo"))


def bf16_values(values: np.ndarray) -> np.ndarray:
    """float32 values that bfloat16 holds exactly."""
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def random_model(folder: Path, demo: Path, **changes: object) -> Path:
    """A random model folder with the demo's config, changed, and its tokenizer."""
    raw = json.loads((demo / "config.json").read_text()) | changes
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    for name in TOKENIZER_FILES:
        shutil.copy(demo / name, folder)
    rng = np.random.default_rng(1)
    weights = {}
    for spec in model_tensors(parse_config(raw)):
        norm = spec.role.value.endswith("norm") or spec.role in (Role.INPUT_NORM, Role.POST_NORM)
        values = 1 + rng.normal(0, 0.1, spec.shape) if norm else rng.normal(0, 0.05, spec.shape)
        weights[spec.name] = bf16_values(values.astype(np.float32))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def moe_folder(tmp_path_factory, demo_folder) -> Path:
    """Eight experts: the number for which llama.cpp has rules of its own."""
    return random_model(
        tmp_path_factory.mktemp("models") / "moe",
        demo_folder,
        model_type="qwen3_moe",
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=4,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=256,
        norm_topk_prob=True,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def odd_folder(tmp_path_factory, demo_folder) -> Path:
    """Rows that 256 does not divide, so every K-quant falls back; 17 layers, full attention."""
    return random_model(
        tmp_path_factory.mktemp("models") / "odd",
        demo_folder,
        num_hidden_layers=17,
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        tie_word_embeddings=False,
    )


@pytest.fixture(scope="session")
def nan_folder(tmp_path_factory, demo_folder) -> Path:
    """The demo with one NaN."""
    folder = tmp_path_factory.mktemp("models") / "nan"
    folder.mkdir()
    for name in ("config.json", *TOKENIZER_FILES):
        shutil.copy(demo_folder / name, folder)
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    weights = load_torch(demo_folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_torch(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def demo_gguf(tmp_path_factory, demo_folder) -> Path:
    """The demo as Q8_0, by our own writer."""
    from qwen3q.models.source import resolve
    from qwen3q.plan.gguf_types import file_type
    from qwen3q.quantize.run import quantize_gguf

    out = tmp_path_factory.mktemp("gguf")
    return quantize_gguf(resolve("demo"), [file_type("Q8_0")], out)[0].path


@pytest.fixture(scope="session")
def llama_tools() -> Path:
    """Folder of llama.cpp's own programs, for tests marked ``peer``."""
    folder = os.environ.get("QWEN3Q_LLAMA_CPP_BIN")
    if not folder:
        pytest.skip("QWEN3Q_LLAMA_CPP_BIN names no folder of llama.cpp's programs")
    return Path(folder)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses to write files of more than 1000 bytes, as it does on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def products_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides multiply with one library: where inputs are rounded, a last bit decides."""
    from qwen3q.models import attention, products

    monkeypatch.setattr(products, "_prefers_onednn", lambda: False)
    monkeypatch.setattr(attention, "slow_mkl", lambda: False)
