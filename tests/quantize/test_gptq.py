"""GPTQ against the paper's own form with an explicit inverse, and by what it promises."""

from __future__ import annotations

import math

import pytest
import torch

from qwen3q.plan.schemes import Scheme, parse_scheme
from qwen3q.quantize.gptq import factorize, gptq, group_order, shrinkage, unfactored
from qwen3q.quantize.rtn import Grid, round_to_nearest, search_range
from tests.quantize.problems import hessian, inputs, output_error, weights

SCHEMES = ("gptq:int4", "gptq:int3", "awq:int4", "int4", "int8")


def naive_gptq(
    target: torch.Tensor, moments: torch.Tensor, order: list[int], scheme: Scheme
) -> torch.Tensor:
    """Algorithm 1 of arXiv 2210.17323 without blocks: the inverse is downdated at every step.

    Args:
        target: float64 ``[in, out]``; moments: float64 ``[in, in]``, damped.
        order: channels, first to last.
    """
    size = scheme.group_of(len(order))
    left = target[order].clone()
    inverse = torch.linalg.inv(moments[order][:, order])
    done = torch.zeros_like(left)
    grid: Grid | None = None
    for j in range(len(order)):
        if j % size == 0:
            span = range(j, j + size)
            trailing = torch.linalg.cholesky(moments[order][:, order].flip(0, 1)).flip(0, 1)
            costs = trailing.diagonal()[list(span)].square()
            grid = search_range(left[None, j : j + size], costs[None], scheme)
        assert grid is not None
        low, high = grid.bounds
        step = (left[j] / grid.scales[0]).round().clamp(low[0], high[0])
        done[j] = step * grid.scales[0]
        error = (left[j] - done[j]) / inverse[0, 0]
        left[j + 1 :] -= inverse[1:, :1] * error
        inverse = inverse[1:, 1:] - inverse[1:, :1] * inverse[:1, 1:] / inverse[0, 0]
    out = torch.zeros_like(done)
    out[order] = done
    return out


@pytest.mark.parametrize("name", SCHEMES)
def test_equals_the_papers_algorithm(name: str) -> None:
    scheme = parse_scheme(name, group_size=32) if name != "int8" else parse_scheme(name)
    moments, target = hessian(400, 96).double(), weights(96, 24).double()
    factor = factorize(moments.clone(), scheme.group_of(96), 0.01)
    rounded = gptq(factor.ordered(target), factor, scheme)
    damped = moments[0] + 0.01 * moments[0].diagonal().mean() * torch.eye(96).double()
    expected = naive_gptq(target[0], damped, factor.order[0].flip(0).tolist(), scheme)
    assert torch.allclose(factor.restored(rounded.values())[0], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", SCHEMES)
def test_error_is_far_below_rounding_to_nearest(name: str) -> None:
    scheme = parse_scheme(name)
    moments, target = hessian(2000, 256), weights(256, 64)
    factor = factorize(moments.clone(), scheme.group_of(256), 0.01)
    found = factor.restored(gptq(factor.ordered(target), factor, scheme).values())
    nearest = round_to_nearest(target, moments.diagonal(dim1=1, dim2=2), scheme).values()
    assert output_error(found, target, moments) < 0.8 * output_error(nearest, target, moments)


def test_uncorrelated_inputs_leave_nothing_to_make_up_for() -> None:
    scheme = parse_scheme("gptq:int4")
    moments, target = torch.eye(128)[None] * 3, weights(128, 16)
    factor = factorize(moments.clone(), 128, 0.0)
    found = factor.restored(gptq(factor.ordered(target), factor, scheme).values())
    nearest = round_to_nearest(target, torch.full((1, 128), 3.0), scheme).values()
    assert torch.equal(found, nearest)


def test_few_tokens_are_trusted_less() -> None:
    """On tokens of uneven size, as a text's are, error counted on others than were rounded with."""
    scheme, tokens = parse_scheme("gptq:int4", group_size=32), 640
    errors = {True: 0.0, False: 0.0}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = inputs(20 * tokens, 128, seed)
        x *= torch.exp(1.5 * torch.randn(len(x), 1, generator=generator))
        few, all_others = ((part.T @ part / len(part))[None] for part in x.tensor_split([tokens]))
        target = weights(128, 64, seed)
        for shrunk in errors:
            share = [shrinkage(128, tokens)] if shrunk else None
            factor = factorize(few.clone(), 32, 0.01, share)
            found = factor.restored(gptq(factor.ordered(target), factor, scheme).values())
            errors[shrunk] += output_error(found, target, all_others)
    assert errors[True] < 0.95 * errors[False]
    assert shrinkage(128, 10**6) < 0.001


def test_order_keeps_groups_together() -> None:
    diagonal = torch.rand(2, 96, generator=torch.Generator().manual_seed(3))
    order = group_order(diagonal, 32)
    for entry in range(2):
        assert sorted(order[entry].tolist()) == list(range(96))
        groups = (order[entry] // 32).view(3, 32)
        assert (groups == groups[:, :1]).all()
        sizes = diagonal[entry][order[entry]].view(3, 32)
        assert (sizes.diff(dim=1) <= 0).all()
        assert (sizes[:, 0].diff() <= 0).all()


def test_groups_come_back_where_they_were() -> None:
    factor = factorize(hessian(300, 96), 32, 0.01)
    by_group = torch.arange(96).float().view(1, 96, 1) // 32
    ordered = factor.ordered(by_group)[:, ::32]
    assert torch.equal(factor.restored_groups(ordered)[0, :, 0], torch.tensor([0.0, 1, 2]))
    values = torch.randn(1, 96, 5)
    assert torch.equal(factor.restored(factor.ordered(values)), values)


@pytest.mark.parametrize("block", [64, 512])
def test_solving_is_dividing_by_the_damped_hessian(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3q.quantize.gptq.FACTOR_BLOCK", block)
    moments = torch.cat([hessian(600, 160, seed).double() for seed in range(2)])
    values = torch.cat([weights(160, 9, seed).double() for seed in range(2)])
    shares = [0.25, 0.0]
    factor = factorize(moments.clone(), 32, 0.01, shares)
    found = factor.ordered(values)
    factor.solve(found)
    damped = moments.clone()
    for matrix, share in zip(damped, shares, strict=True):
        own = matrix.diagonal().clone()
        mean = sum(own.tolist()) / 160
        shrunk = own + share * (own * mean) ** 0.5
        matrix.diagonal().copy_(shrunk + 0.01 * sum(shrunk.tolist()) / 160)
    assert torch.allclose(factor.restored(found), torch.linalg.solve(damped, values), rtol=1e-8)


def test_a_batch_equals_its_entries() -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    moments = torch.cat([hessian(400, 64, seed) for seed in range(3)])
    target = torch.cat([weights(64, 16, seed) for seed in range(3)])
    together = factorize(moments.clone(), 32, 0.01)
    batch = together.restored(gptq(together.ordered(target), together, scheme).values())
    for entry in range(3):
        alone = factorize(moments[entry : entry + 1].clone(), 32, 0.01)
        ordered = alone.ordered(target[entry : entry + 1])
        single = alone.restored(gptq(ordered, alone, scheme).values())
        error = output_error(single[0], target[entry], moments[entry])
        assert output_error(batch[entry], target[entry], moments[entry]) == pytest.approx(
            error, rel=0.02
        )


def test_damping_grows_until_the_hessian_factors() -> None:
    singular = torch.ones(1, 64, 64)
    singular[0, 0, 0] -= 8e-1
    assert 0.01 < factorize(singular, 32, 0.001).damping[0] <= 1.0
    assert factorize(hessian(400, 64), 32, 0.01).damping == (0.01,)


@pytest.mark.parametrize("broken", [0.0, float("nan")])
def test_hopeless_hessians_are_told(broken: float) -> None:
    assert math.isnan(factorize(torch.full((1, 64, 64), broken), 32, 0.01).damping[0])


def test_one_broken_entry_makes_a_hessian_hopeless() -> None:
    moments = hessian(400, 64)
    moments[0, 60, 3] = moments[0, 3, 60] = float("nan")
    assert math.isnan(factorize(moments, 32, 0.01).damping[0])


def test_squared_outputs_that_cancel_are_not_negative() -> None:
    """Weights at right angles to the only token: in float32 something is left."""
    x = inputs(1, 256).double()
    weight = weights(256, 60)[0].double()
    weight -= x.T @ (x @ weight) / float(x.square().sum())
    outputs = unfactored((x.T @ x).float()[None]).squared_outputs(weight.float()[None])
    sizes = weight.square().sum(0) * float(x.square().sum())
    assert (outputs >= 0).all()
    assert (outputs[0] < 1e-6 * sizes).all()
