"""Rounding to nearest and the range search, against loops over single numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qwen3q.plan.schemes import Scheme, parse_scheme
from qwen3q.quantize.rtn import full_range, round_scale, round_to_nearest, search_range
from tests.quantize.problems import weights

SCHEMES = ("gptq:int4", "gptq:int2", "gptq:int8", "awq:int4", "int4", "int8")


def naive_error(
    values: list[float], costs: list[float], scale: float, zero: int, top: int
) -> float:
    """Weighted squared error of rounding numbers one by one."""
    total = 0.0
    for value, cost in zip(values, costs, strict=True):
        code = min(max(round(value / scale) + zero, 0), top)
        total += cost * ((code - zero) * scale - value) ** 2
    return total


@pytest.mark.parametrize("name", SCHEMES)
def test_search_beats_every_range_of_a_fine_scan(name: str) -> None:
    scheme = parse_scheme(name)
    values = weights(64, 6).double()
    if not scheme.symmetric:
        values += torch.linspace(-0.03, 0.03, 6)
    costs = torch.rand(1, 64, generator=torch.Generator().manual_seed(2)).double()
    grid = search_range(values, costs, scheme)
    top = 2**scheme.bits - 1
    for out in range(6):
        column, weight = values[0, :, out].tolist(), costs[0].tolist()
        found = naive_error(
            column, weight, float(grid.scales[0, out]), int(grid.zeros[0, out]), top
        )
        for ratio in (step / 50 for step in range(25, 53)):
            low, high = min(0.0, min(column)) * ratio, max(0.0, max(column)) * ratio
            if scheme.symmetric:
                scale, zero = 2 * max(-low, high) / top, (top + 1) // 2
            else:
                scale = (high - low) / top
                zero = min(max(round(-low / scale), scheme.min_zero), top)
            scale = float(round_scale(torch.tensor(scale), scheme))
            assert found <= naive_error(column, weight, scale, zero, top) * 1.001


@pytest.mark.parametrize("name", SCHEMES)
def test_searched_ranges_never_lose_to_full_ranges(name: str) -> None:
    scheme = parse_scheme(name)
    values, costs = weights(256, 32), torch.rand(1, 256)
    for search in (True, False):
        rounded = round_to_nearest(values, costs, scheme, search=search)
        errors = ((rounded.values() - values).square() * costs[..., None]).sum(1)
        if search:
            searched = errors
    assert (searched <= errors * (1 + 1e-5)).all()
    assert searched.sum() < errors.sum()


@pytest.mark.parametrize("name", SCHEMES)
def test_codes_fit_the_layout_and_scales_its_dtype(name: str) -> None:
    scheme = parse_scheme(name)
    rounded = round_to_nearest(weights(256, 16), torch.ones(1, 256), scheme)
    assert rounded.codes.min() >= 0
    assert rounded.codes.max() <= 2**scheme.bits - 1
    assert (rounded.zeros >= scheme.min_zero).all()
    if scheme.symmetric:
        assert (rounded.zeros == 2 ** (scheme.bits - 1)).all()
    stored = rounded.scales.to(getattr(torch, scheme.scale_dtype)).float()
    assert torch.equal(stored, rounded.scales)
    assert rounded.scales.shape[1] == 256 // scheme.group_of(256)


@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_weights_of_any_size_are_rounded_alike_under_bf16_scales(name: str, factor: float) -> None:
    scheme, values, costs = parse_scheme(name), weights(256, 16), torch.ones(1, 256)
    plain, scaled = (round_to_nearest(v, costs, scheme) for v in (values, values * factor))
    assert torch.equal(scaled.steps, plain.steps)
    assert torch.equal(scaled.scales, plain.scales * factor)


@pytest.mark.parametrize("name", ["gptq:int4", "gptq:int8", "awq:int4"])
def test_groups_of_tiny_weights_use_all_of_float16(name: str) -> None:
    """Against what other tools do: the full range's step, rounded to float16 or its smallest."""
    scheme = parse_scheme(name)
    values = weights(64, 6) * 3e-5
    made = round_to_nearest(values, torch.ones(1, 64), replace(scheme, group_size=64)).values()
    low, high = values.amin(1), values.amax(1)
    reach = 2 * torch.maximum(-low, high) if scheme.symmetric else high - low
    step = (reach / (2**scheme.bits - 1)).half().clamp(min=2**-24).float()
    first = -(step * 2 ** (scheme.bits - 1) if scheme.symmetric else (-low / step).round() * step)
    plain = (values / step).round() * step
    plain = torch.maximum(torch.minimum(plain, first + step * (2**scheme.bits - 1)), first)
    assert (made - values).square().sum() <= (plain - values).square().sum()


def test_a_group_of_zeros_stays_zero() -> None:
    for name in SCHEMES:
        scheme = parse_scheme(name)
        rounded = round_to_nearest(torch.zeros(1, 128, 3), torch.ones(1, 128), scheme)
        assert torch.equal(rounded.values(), torch.zeros(1, 128, 3))


def test_the_larger_side_gets_the_extra_code() -> None:
    """Codes reach from -8 to 7, so a weight of +8 steps needs a negative scale."""
    scheme = Scheme("gptq:int4", parse_scheme("gptq:int4").layout, 4, 32)
    steps = torch.arange(-7, 9).repeat(2).float()
    values = (steps * 0.5)[None, :, None]
    grid = search_range(values, torch.ones(1, 32), scheme)
    assert grid.scales.item() == -0.5
    assert full_range(values, scheme).scales.item() > 0
    assert torch.equal(-grid.steps(values)[0, :, 0], steps)
