"""Weights by place: the table against plans, sums against headers that others wrote.

A plan that changed is a table to make again: ``python -m qwen3q.memory.tabulate``.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3q.errors import CheckpointError
from qwen3q.memory.source import find_model
from qwen3q.memory.weights import FORMATS, planned_weights, release_weights
from qwen3q.models.catalog import catalog, find_release
from qwen3q.models.tensors import LINEAR_ROLES, model_tensors, parameter_count


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_table_holds_what_the_plan_says(fmt: str) -> None:
    for name in ("qwen3-0.6b", "qwen3-14b"):
        release = find_release(name)
        assert release is not None
        assert release_weights(release, fmt) == planned_weights(release.title, release.config, fmt)


def test_the_table_holds_what_the_plan_says_of_a_moe() -> None:
    release = find_release("qwen3-coder-30b-a3b")
    assert release is not None
    for fmt in ("gguf:Q4_K_M", "gptq:int4"):
        assert release_weights(release, fmt) == planned_weights(release.title, release.config, fmt)


@pytest.mark.parametrize("name", [release.name for release in catalog()])
def test_sums_count_every_parameter_once(name: str) -> None:
    release = find_release(name)
    assert release is not None
    weights = release_weights(release, "bf16")
    assert weights.total == 2 * release.parameters
    assert weights.linear_bits == 16.0


def test_linear_parameters_are_those_of_the_checkpoint() -> None:
    release = find_release("qwen3-8b")
    assert release is not None
    linear = sum(s.numel for s in model_tensors(release.config) if s.role in LINEAR_ROLES)
    assert release_weights(release, "fp8").linear_parameters == linear


def test_a_folder_is_read_from_its_headers(demo_folder: Path) -> None:
    model = find_model(str(demo_folder))
    assert model.stored is None
    weights = model.weights("bf16")
    stored = (demo_folder / "model.safetensors").stat().st_size
    assert 0 < stored - weights.total < 20_000


def test_a_quantized_folder_is_taken_as_it_is(tmp_path: Path, demo_folder: Path) -> None:
    raw = json.loads((demo_folder / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {
        "model.embed_tokens.weight": np.zeros(1000, np.uint16),
        "model.layers.0.self_attn.q_proj.qweight": np.zeros(500, np.int32),
        "model.layers.1.mlp.down_proj.g_idx": np.zeros(30, np.int32),
        "model.layers.1.input_layernorm.weight": np.zeros(7, np.uint16),
        "lm_head.weight": np.zeros(40, np.uint16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    model = find_model(str(tmp_path))
    assert model.stored is not None
    assert model.formats() == ["gptq:int4"]
    assert model.stored.embedding == 2000
    assert model.stored.head == 80
    assert model.stored.layers[0].q == 2000
    assert (model.stored.layers[1].down, model.stored.layers[1].index) == (120, 120)
    assert model.stored.layers[1].small == 14
    assert model.stored.total == sum(t.nbytes for t in tensors.values())
    by_file = find_model(str(tmp_path / "model.safetensors"))
    assert by_file.stored is not None
    assert by_file.stored.total == model.stored.total


@pytest.mark.parametrize("missing", ["", "blk.1.ffn_norm.weight"])
def test_a_gguf_file_is_read_from_its_header(missing: str, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "qwen3")
    for add, value in (
        (writer.add_context_length, 40960), (writer.add_embedding_length, 64),
        (writer.add_block_count, 2), (writer.add_feed_forward_length, 128),
        (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
        (writer.add_key_length, 32), (writer.add_value_length, 32),
        (writer.add_vocab_size, 96), (writer.add_file_type, 7),
    ):  # fmt: skip
        add(value)
    writer.add_layer_norm_rms_eps(1e-6)
    layer = {
        "attn_norm": (64,), "attn_q": (128, 64), "attn_k": (64, 64), "attn_v": (64, 64),
        "attn_q_norm": (32,), "attn_k_norm": (32,), "attn_output": (64, 128), "ffn_norm": (64,),
        "ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128),
    }  # fmt: skip
    shapes = {"token_embd.weight": (96, 64), "output_norm.weight": (64,)}
    shapes |= {f"blk.{i}.{name}.weight": shape for i in (0, 1) for name, shape in layer.items()}
    for name, shape in shapes.items():
        if name == "blk.0.attn_k.weight":
            blocks = np.zeros((64, 68), np.uint8)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        elif name != missing:
            writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if missing:
        with pytest.raises(CheckpointError, match=f"model.gguf has no tensor {missing}"):
            find_model(str(path))
        return
    model = find_model(str(path))
    assert model.stored is not None
    assert model.formats() == ["gguf:Q8_0"]
    assert (model.config.num_hidden_layers, model.config.head_dim) == (2, 32)
    assert model.config.tie_word_embeddings
    assert model.stored.embedding == 4 * 96 * 64
    assert model.stored.layers[0].k == 64 * 68
    assert model.stored.layers[1].down == 4 * 64 * 128
    assert model.stored.file_bytes == path.stat().st_size
    assert model.stored.parameters == parameter_count(model.config)
