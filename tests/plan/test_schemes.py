"""Scheme names, their options, and what a model can't be stored in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen3q.errors import UsageError
from qwen3q.models.catalog import find_release
from qwen3q.models.config import Qwen3Config
from qwen3q.plan.scheme_fit import check_scheme, fitting_group_sizes
from qwen3q.plan.schemes import (
    PER_CHANNEL,
    Override,
    parse_scheme,
)
from qwen3q.plan.targets import parse_target


@pytest.fixture
def config() -> Qwen3Config:
    release = find_release("qwen3-8b")
    assert release is not None
    return release.config


def test_names_are_the_hubs() -> None:
    assert parse_scheme("GPTQ:int4").suffix == "GPTQ-Int4"
    assert parse_scheme("gptq:int8").suffix == "GPTQ-Int8"
    assert parse_scheme("awq").suffix == "AWQ"
    assert parse_scheme("int8").suffix == "W8A8"
    assert parse_scheme("int4").suffix == "W4A16"
    assert parse_scheme("bnb:nf4").suffix == "bnb-nf4"
    assert parse_scheme("gptq:int4", group_size=32).suffix == "GPTQ-Int4-g32"
    assert parse_scheme("awq", symmetric=True).suffix == "AWQ-sym"
    assert parse_scheme("bf16").suffix == "BF16"


def test_bits_rename_the_scheme() -> None:
    assert parse_scheme("gptq:int4", bits=3).name == "gptq:int3"
    assert parse_scheme("int4", bits=8).name == "w8a16"


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("gptq:in4", {}, "'gptq:in4' is no format", "gptq:int4"),
        ("awk", {}, "'awk' is no format", "Did you mean awq:int4?"),
        ("q4_k_m", {}, "'q4_k_m' is no format", "Did you mean gguf:Q4_K_M?"),
        ("Q4KM", {}, "'Q4KM' is no format", "Did you mean gguf:Q4_K_M"),
        ("nvfp", {}, "'nvfp' is no format", "nvfp4 (only estimated)"),
        ("exl3", {}, "'exl3' is no format", "fp8, nvfp4 (only estimated), bf16"),
        ("gguf:Q4_K_M", {}, "is a GGUF file type", "plan_gguf"),
        ("awq:int4", {"bits": 8}, "can't have 8 bits", "4"),
        ("gptq:int4", {"bits": 5}, "can't have 5 bits", "2, 3, 4, 8"),
        ("gptq:int4", {"group_size": 100}, "100 is no group size", "32, 64, 128"),
        ("int8", {"group_size": 128}, "no groups", "gptq:int8"),
        ("int8", {"symmetric": False}, "no groups", "gptq:int8"),
        ("bnb:nf4", {"group_size": 32}, "has no options", ""),
    ],
)
def test_what_is_refused(name: str, options: dict[str, int], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_scheme(name, **options)
    assert message in error.value.message
    assert hint in error.value.hint
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["gguf-q5_k_m", "GGUF/Q5_K_M", "ggufQ5_K_M"])
def test_a_gguf_type_without_its_colon_is_spelled_out(name: str) -> None:
    with pytest.raises(UsageError, match="has no colon after gguf") as error:
        parse_target(name)
    assert "Write gguf:Q5_K_M" in error.value.hint


def test_overrides_in_their_order() -> None:
    scheme = parse_scheme(
        "gptq:int4",
        overrides=(
            Override("model.layers.1.*", keep_float=True),
            Override("*.down_proj", bits=8, group_size=PER_CHANNEL),
        ),
    )
    assert scheme.at("model.layers.1.mlp.down_proj") is None
    assert scheme.at("model.layers.11.mlp.up_proj.weight") == replace(
        scheme, overrides=scheme.overrides
    )
    down = scheme.at("model.layers.0.mlp.down_proj.weight")
    assert down is not None
    assert (down.bits, down.group_size) == (8, PER_CHANNEL)
    assert down.overrides == ()


def test_an_override_that_matches_nothing_is_refused() -> None:
    """A typing error would else cost a whole run to be noticed."""
    scheme = parse_scheme("gptq:int4", overrides=(Override("*.down_prj", keep_float=True),))
    with pytest.raises(UsageError, match=r"'\*\.down_prj' matches no linear of this model"):
        check_scheme(scheme, find_release("qwen3-8b").config)
    check_scheme(
        replace(scheme, overrides=(Override("*.experts.127.*", bits=8),)),
        find_release("qwen3-30b-a3b").config,
    )


def test_overrides_that_leave_nothing_to_quantize_are_refused(config: Qwen3Config) -> None:
    scheme = parse_scheme("gptq:int4", overrides=(Override("*", keep_float=True),))
    with pytest.raises(UsageError, match="nothing is left for gptq:int4"):
        check_scheme(scheme, config)


def test_awq_has_one_group_size() -> None:
    with pytest.raises(UsageError, match="AWQ has one group size"):
        parse_scheme("awq", overrides=(Override("*.down_proj", group_size=32),))
    parse_scheme("awq", overrides=(Override("*.down_proj", keep_float=True),))


def test_misfits_are_named_with_what_fits(config: Qwen3Config) -> None:
    odd = replace(config, intermediate_size=96 * 33)
    with pytest.raises(UsageError) as error:
        check_scheme(parse_scheme("gptq:int4"), odd)
    assert "model.layers.0.mlp.down_proj.weight" in error.value.message
    assert "3168 inputs" in error.value.message
    assert error.value.hint == "Group sizes that fit this model: 32, -1 (per channel)."
    assert fitting_group_sizes(parse_scheme("gptq:int4"), odd) == [32, PER_CHANNEL]
    with pytest.raises(UsageError, match="outputs do not divide by 8"):
        check_scheme(parse_scheme("awq"), replace(config, intermediate_size=128 * 33 + 4))
    with pytest.raises(UsageError, match="outputs do not divide by 32"):
        check_scheme(parse_scheme("bnb:int8"), replace(config, intermediate_size=100))
    check_scheme(parse_scheme("bf16"), odd)
