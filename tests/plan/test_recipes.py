"""Recipes load, mean what they say, and refuse what they can't."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from qwen3q.errors import UsageError
from qwen3q.models.catalog import find_release
from qwen3q.plan.folder import plan_folder
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.plan.recipes import load_recipe, recipe_names, recipes_folder
from qwen3q.plan.tensor_parallel import tensor_parallel_legality
from qwen3q.quantize.solve import SolveOptions


def test_the_promised_recipes_are_there_and_documented() -> None:
    assert {"balanced", "quality", "fast", "moe", "tiny-gpu"} <= set(recipe_names())
    readme = (recipes_folder() / "README.md").read_text()
    for name in recipe_names():
        assert f"| `{name}` |" in readme


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_plans_a_release(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.summary.endswith(".")
    release = find_release("qwen3-0.6b")
    assert release is not None
    for scheme in recipe.schemes():
        assert plan_folder(release.title, release.config, scheme).tensor_bytes > 0


def test_algorithm_options_are_the_solvers() -> None:
    options = SolveOptions(**load_recipe("quality").algorithm.options())
    assert options.min_expert_tokens == 512
    assert load_recipe("balanced").algorithm.options().keys() <= {
        field.name for field in fields(SolveOptions)
    }


def test_defaults_are_the_solvers_defaults() -> None:
    assert SolveOptions(**load_recipe("balanced").algorithm.options()) == SolveOptions()


def test_moe_recipe_can_be_split_over_four() -> None:
    release = find_release("qwen3-30b-a3b")
    assert release is not None
    by_size = {
        split.size: split
        for split in tensor_parallel_legality(release.config, load_recipe("moe").schemes()[0])
    }
    assert by_size[4].is_legal
    assert not by_size[8].is_legal


def test_numbers_reach_the_formats_that_have_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("formats: [gptq:int4, int8, bnb:nf4, gguf:Q4_K_M]\ngroup_size: 32\n")
    recipe = load_recipe(str(path))
    assert recipe.gguf_formats == ["gguf:Q4_K_M"]
    assert {s.name: s.group_size for s in recipe.schemes()} == {
        "gptq:int4": 32,
        "int8": -1,
        "bnb:nf4": 64,
    }


def test_overrides_by_tensor() -> None:
    scheme = load_recipe("mixed").schemes()[0]
    assert scheme.at("model.layers.0.self_attn.q_proj.weight") is None
    down = scheme.at("model.layers.10.mlp.down_proj.weight")
    up = scheme.at("model.layers.10.mlp.up_proj.weight")
    assert down is not None
    assert up is not None
    assert (down.bits, down.name, up.bits) == (8, "gptq:int8", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("formats: [gptq:int5]", "'gptq:int5' is no format"),
        ("formats: []", "formats"),
        ("format: [gptq:int4]", "format"),
        ("formats: [gptq:int4]\ngroup_size: 48", "48 is no group size"),
        ("formats: [gptq:int4]\ncalibration: {samples: 0}", "calibration.samples"),
        ("formats: [gptq:int4]\nalgorithm: {name: magic}", "algorithm.name"),
        ("formats: [awq:int4]\noverrides: [{match: '*.down_proj', group_size: 32}]", "AWQ has one"),
        ("formats: [gguf:Q8_0]\nbits: 4", "bits changes nothing about gguf:Q8_0"),
        (
            "formats: [gguf:Q8_0]\noverrides: [{match: '*', keep_float: true}]",
            "overrides changes nothing about gguf:Q8_0",
        ),
        ("formats: [bnb:nf4]\ngroup_size: 32", "group_size changes nothing about bnb:nf4"),
        ("formats: [int8]\ngroup_size: 32", "group_size changes nothing about int8"),
        ("formats: [fp8]\nbits: 4", "bits changes nothing about fp8"),
        (
            "formats: [int8]\nactivation_memory_gib: .inf",
            "activation_memory_gib is inf: input should be a finite number.",
        ),
        (
            "formats: [int8]\ncalibration: balanced",
            "calibration is 'balanced': input should be a valid dictionary.",
        ),
        ("- a list", "holds no keys"),
        ("formats: [", "not valid YAML"),
        ("formats: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_a_broken_recipe_is_refused_by_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_recipe(str(path))
    assert message in error.value.message


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        load_recipe("balaced")
    assert "Did you mean balanced?" in error.value.hint


def test_formats_that_options_make_one_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        job_of(QuantizeRequest(("gptq:int4", "gptq:int8"), bits=4))
    assert error.value.message == "With 4 bits, gptq:int4 and gptq:int8 are one format."
    twice = job_of(QuantizeRequest(("gptq:int4", "gptq"), bits=8))
    assert [scheme.name for scheme in twice.schemes] == ["gptq:int8"]


def test_a_calibration_that_an_importance_matrix_leaves_without_use_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        job_of(QuantizeRequest(("gguf:Q4_K_M",), calibration="balanced", imatrix=True))
    assert "--calibration changes nothing about gguf:Q4_K_M" in error.value.message
    assert "--imatrix" in error.value.hint
    both = ("gguf:Q4_K_M", "int4")
    assert job_of(QuantizeRequest(both, calibration="balanced", imatrix=True)).calibrates
