"""The decoder layer against transformers' own Qwen3 and Qwen3-MoE, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from qwen3q.models.config import Qwen3Config, Yarn, parse_config
from qwen3q.models.decoder import decoder_layer, rope_table

SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
MOE: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
YARN: dict[str, Any] = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
}


def short_weights(model: torch.nn.Module, layer: int) -> dict[str, torch.Tensor]:
    """One layer's weights, experts split, by the decoder's names."""
    prefix = f"model.layers.{layer}."
    out: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        if not name.startswith(prefix):
            continue
        short = name.removeprefix(prefix).removesuffix(".weight")
        if short == "mlp.experts.gate_up_proj":
            for expert, both in enumerate(value):
                gate, up = both.chunk(2, dim=0)
                out[f"mlp.experts.{expert}.gate_proj"] = gate
                out[f"mlp.experts.{expert}.up_proj"] = up
        elif short == "mlp.experts.down_proj":
            for expert, down in enumerate(value):
                out[f"mlp.experts.{expert}.down_proj"] = down
        else:
            out[short] = value
    return out


def reference(raw: dict[str, Any], kind: str) -> tuple[torch.nn.Module, Qwen3Config]:
    torch.manual_seed(0)
    classes = {
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
    }
    config_class, model_class = classes[kind]
    model = model_class(config_class(**raw)).eval()
    for name, parameter in model.named_parameters():
        scale = 0.3 if "norm" in name else 0.15
        offset = 1.0 if "norm" in name else 0.0
        parameter.data = torch.randn_like(parameter) * scale + offset
    return model, parse_config({"model_type": kind, **raw})


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("qwen3", {}),
        ("qwen3", YARN),
        ("qwen3_moe", MOE),
        ("qwen3_moe", {**MOE, **YARN, "norm_topk_prob": False}),
    ],
)
def test_layer_equals_transformers(kind: str, extra: dict[str, Any]) -> None:
    model, config = reference({**SHAPE, **extra}, kind)
    ids = torch.arange(2 * 48).view(2, 48) % config.vocab_size
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        rope = rope_table(config, 48)
        weights = short_weights(model, 0)
        mine = decoder_layer(states[0], weights, config, rope)
        part = decoder_layer(states[0], weights, config, rope, wanted=slice(30, 47))
    scale = states[1].abs().max()
    assert torch.allclose(mine / scale, states[1] / scale, atol=1e-5, rtol=0)
    assert torch.allclose(part / scale, states[1][:, 30:47] / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("original", "factor"), [(32, 4.0), (4096, 2.5), (131072, 4.0)])
def test_yarn_changes_the_angles_that_transformers_changes(original: int, factor: float) -> None:
    scaling = YARN["rope_scaling"] | {
        "factor": factor, "original_max_position_embeddings": original
    }  # fmt: skip
    longest = round(original * factor)
    shape = SHAPE | {"head_dim": 128, "max_position_embeddings": longest, "rope_scaling": scaling}
    model, config = reference(shape, "qwen3")
    assert config.yarn == Yarn(factor, original)
    positions = torch.arange(100)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, 100, 1), positions)
    mine = rope_table(config, 100)
    assert torch.allclose(mine.cos, cos[0], atol=1e-5, rtol=0)
    assert torch.allclose(mine.sin, sin[0], atol=1e-5, rtol=0)


def test_watched_linears_see_every_input_once() -> None:
    model, config = reference({**SHAPE, **MOE}, "qwen3_moe")
    weights = short_weights(model, 0)
    rows: dict[str, int] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        rows[name] = rows.get(name, 0) + x.flatten(0, -2).shape[0]
        return torch.nn.functional.linear(x, weights[name])

    hidden = torch.randn(3, 20, config.hidden_size)
    with torch.no_grad():
        decoder_layer(hidden, weights, config, rope_table(config, 20), linear)
    assert rows["self_attn.o_proj"] == 60
    routed = sum(rows.get(f"mlp.experts.{e}.down_proj", 0) for e in range(config.num_experts))
    assert routed == 60 * config.num_experts_per_tok
