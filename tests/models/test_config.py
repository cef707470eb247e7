"""Configs in both spellings, and the catalog, against transformers and published counts."""

from __future__ import annotations

import json
import re

import pytest

from qwen3q.errors import ModelError, UsageError
from qwen3q.models.catalog import catalog, find_release, release_repo, suggest_releases
from qwen3q.models.config import Yarn, parse_config, read_config
from qwen3q.models.tensors import (
    active_parameter_count,
    check_tensors,
    model_tensors,
    parameter_count,
)
from qwen3q.models.yarn import with_yarn

ORIGINAL = "original_max_position_embeddings"


def raw_config(demo_folder, **changes):
    return json.loads((demo_folder / "config.json").read_text()) | changes


@pytest.mark.parametrize("release", catalog(), ids=lambda r: r.name)
def test_parameters_are_the_published_ones(release):
    assert parameter_count(release.config) == release.parameters
    assert active_parameter_count(release.config) == release.active_parameters


def test_there_are_thirteen_releases():
    assert len(catalog()) == 13


@pytest.mark.parametrize("name", ["qwen3-8b", "Qwen3-8B", "Qwen/Qwen3-8B", "8b", " QWEN3-8B "])
def test_aliases(name):
    assert find_release(name).title == "Qwen3-8B"


def test_release_repo_keeps_the_variant_asked_for():
    assert release_repo("qwen3-4b-thinking-2507") == "Qwen/Qwen3-4B-Thinking-2507"
    assert release_repo("qwen3-4b-2507") == "Qwen/Qwen3-4B-Instruct-2507"
    assert "qwen3-8b" in suggest_releases("qwen3-9b")


@pytest.mark.parametrize("moe", [False, True])
def test_tensors_are_those_of_transformers(moe, demo_folder):
    """Names and shapes of an empty transformers model of the same config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = raw_config(demo_folder)
    if moe:
        raw |= {
            "model_type": "qwen3_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 1,
        }
    config = parse_config(raw)
    settings = {k: v for k, v in raw.items() if k not in ("model_type", "torch_dtype")}
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(raw["model_type"], **settings)
        )
    shapes = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    ours = {t.name: t.shape for t in model_tensors(config)}
    if moe:  # transformers 5 holds a layer's experts in one tensor
        assert sum(map(_numel, ours.values())) == sum(map(_numel, shapes.values()))
        shapes = {n: s for n, s in shapes.items() if ".experts." not in n}
        ours = {n: s for n, s in ours.items() if ".experts." not in n}
    assert ours == shapes


def _numel(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def test_five_x_spelling_is_the_same_config(demo_folder):
    old = raw_config(demo_folder, rope_theta=5e6)
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    assert parse_config(new) == parse_config(old)


def test_num_local_experts_is_num_experts(demo_folder):
    moe = {
        "model_type": "qwen3_moe",
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
    }
    assert (
        parse_config(raw_config(demo_folder, num_local_experts=4, **moe)).num_experts
        == parse_config(raw_config(demo_folder, num_experts=4, **moe)).num_experts
        == 4
    )


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_yarn_in_both_spellings(demo_folder, key):
    scaling = {key: "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = parse_config(raw_config(demo_folder, rope_scaling=scaling))
    assert config.yarn == Yarn(4.0, 32768)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "256"}, "hidden_size is '256'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"head_dim": 63}, "head_dim 63 is odd"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, not a positive number"),
        ({"rope_theta": 10**400}, r"rope_theta is 10{79}\.\.\., not a positive number"),
        ({"head_dim": 10**30}, "head_dim is 1"),
        ({"max_position_embeddings": 1 << 31}, "max_position_embeddings is 2147483648, not a"),
        ({"torch_dtype": "int4"}, "dtype is 'int4', not one of bfloat16"),
        ({"torch_dtype": {"a": 1}}, "dtype is {'a': 1}"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, ORIGINAL: "x"}},
            "original_max_position_embeddings is 'x'",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
        ({"model_type": "qwen3_moe"}, "num_experts"),
    ],
)
def test_config_that_is_no_qwen3_names_what_is_wrong(demo_folder, changes, says):
    with pytest.raises(ModelError, match=says) as caught:
        parse_config(raw_config(demo_folder, **changes))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"bits": "four"}, "bits is 'four', not 1 to 32"),
        ({"bits": True}, "bits is True"),
        ({"bits": 0}, "bits is 0"),
        ({"group_size": "128"}, "group_size is '128'"),
    ],
)
def test_a_quantization_config_of_no_numbers_is_refused(demo_folder, stated, says):
    stated |= {"quant_method": "awq"}
    with pytest.raises(ModelError, match=f"quantization_config: {says}") as caught:
        parse_config(raw_config(demo_folder, quantization_config=stated))
    assert caught.value.hint


def test_a_number_that_python_reads_no_digits_of_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)


def test_tensors_that_do_not_fit_are_named(demo_folder):
    config = parse_config(raw_config(demo_folder))
    shapes = {t.name: t.shape for t in model_tensors(config)}
    missing = shapes.copy()
    del missing["model.layers.2.self_attn.q_norm.weight"]
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.2\.self_attn\.q_norm"):
        check_tensors(config, missing, "m")
    with pytest.raises(ModelError, match=r"norm\.weight has shape \[7\]"):
        check_tensors(config, shapes | {"model.norm.weight": (7,)}, "m")
    with pytest.raises(ModelError, match=r"visual\.blocks"):
        check_tensors(config, shapes | {"visual.blocks.0.weight": (7,)}, "m")
    for end in ("qweight", "weight_packed", "weight_scale", "weight_scale_inv", "weight.absmax"):
        name = f"model.layers.0.mlp.up_proj.{end}"
        with pytest.raises(ModelError, match=f"m is quantized already: it holds {name}"):
            check_tensors(config, shapes | {name: (7,)}, "m")
    check_tensors(config, shapes | {"lm_head.weight": (8192, 256)}, "m")


@pytest.mark.parametrize(
    ("stated", "method"),
    [({"quant_method": "awq"}, "awq"), ({"bits": 4}, "quantization_config"), (None, None)],
)
def test_the_quant_method_is_the_configs(demo_folder, stated, method):
    raw = json.loads((demo_folder / "config.json").read_text())
    assert parse_config(raw | {"quantization_config": stated}).quant_method == method


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_experts", "vocab_size"])
def test_a_plan_can_not_be_made_endless(demo_folder, name):
    moe = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2}
    raw = json.loads((demo_folder / "config.json").read_text()) | moe
    with pytest.raises(ModelError, match=f"{name} is 1000000000, more than"):
        parse_config(raw | {"moe_intermediate_size": 64, name: 10**9})


@pytest.mark.parametrize("changes", [{"bos_token_id": {}}, {"eos_token_id": [1, "2"]}])
def test_token_ids_are_numbers(demo_folder, changes):
    raw = json.loads((demo_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="is no token id"):
        parse_config(raw | changes)


@pytest.mark.parametrize("layers", [1, "0", {"0": 1}, [-1], ["0"], [1.5]])
def test_layers_without_experts_are_a_list_of_numbers(demo_folder, layers):
    raw = json.loads((demo_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="mlp_only_layers"):
        parse_config(raw | {"mlp_only_layers": layers})


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (["gptq"], "quantization_config is"),
        ({"config_groups": 4}, "config_groups is 4"),
        ({"config_groups": {"group_0": "x"}}, "group_0 is 'x'"),
        ({"config_groups": {"group_0": {"weights": 4}}}, "group_0.weights is 4"),
        ({"config_groups": {"g": {"input_activations": {"num_bits": "8"}}}}, "num_bits is '8'"),
    ],
)
def test_a_misshapen_quantization_config_is_refused(demo_folder, stated, named):
    raw = json.loads((demo_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=re.escape(named)):
        parse_config(raw | {"quantization_config": stated})


def test_a_group_may_say_nothing(demo_folder):
    raw = json.loads((demo_folder / "config.json").read_text())
    stated = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}}
    assert parse_config(raw | {"quantization_config": stated}).quant_method == "compressed-tensors"


def test_a_context_is_extended_once(demo_folder):
    extended = with_yarn(read_config(demo_folder), 4)
    with pytest.raises(UsageError, match="has YaRN already"):
        with_yarn(extended, 2)
