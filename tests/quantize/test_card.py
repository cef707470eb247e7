"""The model card says what was done, what it cost, and only what loads the folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from qwen3q.models.catalog import find_release
from qwen3q.models.source import ModelSource, SourceKind
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.schemes import Override, Scheme, parse_scheme
from qwen3q.quantize.card import model_card


def card(release_name: str, scheme: Scheme, rows: list[dict[str, Any]]) -> str:
    release = find_release(release_name)
    assert release is not None
    config = replace(release.config, num_hidden_layers=1)
    source = ModelSource(
        release.title, SourceKind.ALIAS, config, release=release, repo=release.repos[0]
    )
    plan = plan_folder(release.title, config, scheme)
    name = f"{release.title}-{scheme.suffix}"
    calibration = {"name": "balanced", "tokens": 60000}
    options = {"algorithm": "gptq", "min_expert_tokens": 128}
    notes = ["folded up into down"]
    return model_card(name, scheme, plan, source, calibration, options, rows, notes)


def row(name: str, error: float, **more: Any) -> dict[str, Any]:
    base = {"name": f"model.layers.0.{name}.weight", "error": error, "rtn_error": 2 * error}
    return base | {"tokens": 60000, "forced_tokens": 0, "fallback": ""} | more


def test_dense_gptq() -> None:
    rows = [row("mlp.up_proj", 0.01), row("mlp.down_proj", 0.02)]
    text = card("qwen3-8b", parse_scheme("gptq:int4"), rows)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "Qwen/Qwen3-8B"
    assert front["license"] == "apache-2.0"
    assert {"gptq", "4-bit"} <= set(front["tags"])
    assert "# Qwen3-8B-GPTQ-Int4" in text
    assert "vllm serve ./Qwen3-8B-GPTQ-Int4" in text
    assert "| calibration: tokens | 60000 |" in text
    assert "| algorithm | gptq |" in text
    assert "| min expert tokens | 128 |" in text
    assert "| down_proj | 0.02 | 0.04 |" in text
    assert "- folded up into down" in text
    assert "## Experts" not in text


def test_experts_and_what_does_not_load_them() -> None:
    rows = [
        row("mlp.experts.0.up_proj", 0.01, tokens=900),
        row("mlp.experts.1.up_proj", 0.01, tokens=3, forced_tokens=125, fallback="too few tokens"),
    ]
    text = card("qwen3-30b-a3b", parse_scheme("gptq:int4"), rows)
    assert "3 at the least (`model.layers.0.mlp.experts.1`)" in text
    assert "did not send: 1 experts" in text
    assert "AutoModelForCausalLM" not in text
    assert "experts of this format at random values" in text
    assert "GPTQModel.load" in text


def test_asymmetric_gptq_is_for_transformers_alone() -> None:
    """GPTQModel 7.6: "Loading of a sym=False model with format=FORMAT.GPTQ is only supported if
    produced by gptqmodel"."""
    text = card("qwen3-8b", parse_scheme("gptq:int4", symmetric=False), [])
    assert "vllm serve" not in text
    assert "GPTQModel.load" not in text
    assert "AutoModelForCausalLM" in text
    assert "vLLM and GPTQModel refuse asymmetric GPTQ" in text


@pytest.mark.parametrize("name", ["int8", "bnb:nf4"])
def test_experts_that_transformers_5_does_not_load(name: str) -> None:
    """transformers 5.23 ends such a load with an error; 4.57 loads bitsandbytes' experts."""
    text = card("qwen3-30b-a3b", parse_scheme(name), [])
    assert "transformers 5 does not load experts of this format" in text
    assert ("AutoModelForCausalLM" in text) == ("'transformers<5'" in text) == (name == "bnb:nf4")


def test_gptq_with_exceptions_is_not_for_transformers() -> None:
    exceptions = (Override("*.down_proj", bits=8),)
    text = card("qwen3-8b", parse_scheme("gptq:int4", overrides=exceptions), [])
    assert "AutoModelForCausalLM" not in text
    assert "| exception | `*.down_proj`: 8 bits |" in text


@pytest.mark.parametrize(
    ("pattern", "split"),
    [
        ("*.v_proj", "model.layers.0.self_attn.q_proj and model.layers.0.self_attn.v_proj"),
        ("*.up_proj", "model.layers.0.mlp.gate_proj and model.layers.0.mlp.up_proj"),
        ("*.self_attn.*", None),
        ("*.down_proj", None),
    ],
)
def test_exceptions_that_split_a_matrix_are_not_for_vllm(pattern: str, split: str | None) -> None:
    """vLLM packs q, k and v, and gate and up (``packed_modules_mapping`` of its Qwen3)."""
    scheme = parse_scheme("int4", overrides=(Override(pattern, keep_float=True),))
    text = card("qwen3-8b", scheme, [])
    assert ("vllm serve" in text) == (split is None)
    assert (f"one matrix of {split}" in text) == (split is not None)


def test_an_exception_that_changes_nothing_splits_nothing() -> None:
    scheme = parse_scheme("gptq:int4", overrides=(Override("*.v_proj", bits=4),))
    assert "vllm serve" in card("qwen3-8b", scheme, [])
