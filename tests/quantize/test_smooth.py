"""Folded scales: what they gain, that they are optimal, and that they change no function."""

from __future__ import annotations

import pytest
import torch

from qwen3q.models.config import Qwen3Config
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.awq import rounding_error, search_scales
from qwen3q.quantize.smooth import (
    SmoothTarget,
    centred,
    fit_scales,
    fold_into_norm,
    powers_of_two,
    value_tie,
)
from tests.quantize.problems import inputs, weights

CONFIG = Qwen3Config("qwen3", 64, 1, 4, 2, 16, 64, 32, True, 64, 1e6, 1e-6)


def target_of(scheme_name: str, outliers: torch.Tensor) -> SmoothTarget:
    """Inputs multiplied and weights divided by ``outliers``: the same function, harder to round."""
    x = inputs(600, 256) * outliers
    w = weights(256, 96) / outliers[:, None]
    tokens = x[::4] if scheme_name == "int8" else None
    return SmoothTarget(w, x.square().mean(0)[None], None, tokens)


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4", "int4", "int8"])
def test_scales_undo_outlier_channels(name: str) -> None:
    scheme = parse_scheme(name)
    outliers = torch.ones(256)
    outliers[::17] = 16
    outliers[5::29] = 1 / 8
    hard, easy = target_of(name, outliers), target_of(name, torch.ones(256))
    found, plain = search_scales(hard, scheme), search_scales(easy, scheme)
    ones = torch.ones(256)
    assert found is not None
    after = rounding_error(hard, found, scheme)
    assert after < 0.5 * rounding_error(hard, ones, scheme)
    least = rounding_error(easy, plain if plain is not None else ones, scheme)
    assert after < 1.1 * least


@pytest.mark.parametrize("name", ["gptq:int4", "int8"])
def test_no_nearby_scales_expect_less_error(name: str) -> None:
    """A fixed point of the derivative, held against the error itself on random steps aside."""
    scheme = parse_scheme(name)
    target = target_of(name, torch.exp(torch.linspace(-1, 1, 256)))

    def expected(scales: torch.Tensor) -> float:
        size, tokens = scheme.group_of(256), target.tokens
        scaled = (target.weights[0].abs() * scales[:, None]).double().view(-1, size, 96)
        widest = scaled.pow(12).sum(1).pow(2 / 12)
        costs = (target.importance[0] / scales.square()).double().view(-1, size).sum(1)
        error = float((widest.sum(1) * costs).sum()) / 4 ** (scheme.bits - 1)
        if tokens is not None:
            longest = (tokens.abs() / scales).double().pow(12).sum(1).pow(2 / 12).mean()
            error += float(longest * scaled.square().sum()) / 4**7
        return error

    found = fit_scales(target, scheme)
    least = expected(found)
    generator = torch.Generator().manual_seed(0)
    for size in (0.02, 0.1, 0.4):
        for _ in range(40):
            aside = found * torch.exp(size * torch.randn(256, generator=generator))
            assert expected(aside) > least * (1 - 1e-4)


def test_values_repeated_over_heads_share_a_scale() -> None:
    tie = value_tie(CONFIG)
    assert tie.tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    x, w = inputs(300, 64), weights(64, 32)
    target = SmoothTarget(w, x.square().mean(0)[None], tie)
    scales = fit_scales(target, parse_scheme("gptq:int4", group_size=32))
    heads = scales.view(4, 16)
    assert torch.allclose(heads[0], heads[1])
    assert torch.allclose(heads[2], heads[3])
    assert not torch.allclose(heads[0], heads[2])


def test_centred_scales_average_to_one() -> None:
    scales = centred(torch.tensor([1.0, 2, 4, 8]), torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(scales, torch.tensor([0.5, 0.5, 2, 2]))


def test_a_folded_norm_is_exact_in_its_dtype() -> None:
    norm = torch.randn(512).to(torch.bfloat16).float()
    norm[7] = 0
    norm[8] = 2.0**-100
    scales = torch.exp(torch.randn(512))
    scales[8], scales[9] = 1e30, 1e-45
    folded, exact = fold_into_norm(norm, scales, torch.bfloat16)
    taken = torch.ones(512, dtype=torch.bool)
    taken[7:10] = False
    assert torch.allclose(exact[taken], scales[taken], rtol=2**-8, atol=0)
    assert exact[~taken].tolist() == [1, 1, 1]
    assert torch.equal(folded.to(torch.bfloat16).float(), folded)
    assert torch.allclose(folded * exact, norm, rtol=1e-6, atol=0)
    assert (exact > 0).all()


def test_powers_of_two_change_no_digit() -> None:
    scales = powers_of_two(torch.tensor([0.9, 1.5, 3.1, 0.2]))
    assert scales.tolist() == [1.0, 2.0, 4.0, 0.25]
    weight = torch.randn(4).to(torch.bfloat16)
    assert torch.equal(
        (weight.float() * scales).to(torch.bfloat16).float(), weight.float() * scales
    )


@pytest.mark.parametrize("name", ["gptq:int4", "gptq:int3", "awq:int4", "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_never_worse_than_no_scales(name: str, seed: int) -> None:
    """Under the statistics it was given, on every kind of input; and it may find that none help."""
    scheme = parse_scheme(name)
    x, w = inputs(600, 256, seed), weights(256, 96, seed + 9)
    for spread in (0.0, 0.5, 2.0):
        generator = torch.Generator().manual_seed(seed)
        outliers = torch.exp(spread * torch.randn(256, generator=generator))
        tokens = (x * outliers)[::4] if name == "int8" else None
        target = SmoothTarget(w, (x * outliers).square().mean(0)[None], None, tokens)
        found = search_scales(target, scheme)
        if found is None:
            continue
        assert (found > 0).all()
        before = rounding_error(target, torch.ones(256), scheme)
        assert rounding_error(target, found, scheme) < before


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4"])
def test_channels_that_are_never_fed_get_moderate_scales(name: str) -> None:
    x = inputs(600, 256) * torch.exp(torch.linspace(-2, 2, 256))
    x[:, 5:9] = 0
    target = SmoothTarget(weights(256, 96), x.square().mean(0)[None])
    found = search_scales(target, parse_scheme(name))
    assert found is not None
    assert float(found.min() / found.max()) > 1e-4


def test_no_scales_are_taken_where_weights_lie_on_the_grid() -> None:
    """Whatever is scaled there gets worse."""
    scheme = parse_scheme("gptq:int4", group_size=32)
    codes = torch.randint(-8, 8, (1, 64, 48), generator=torch.Generator().manual_seed(0)).float()
    codes[:, ::32] = -8
    target = SmoothTarget(codes * 2.0**-6, inputs(300, 64).square().mean(0)[None])
    assert search_scales(target, scheme) is None
