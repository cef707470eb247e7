"""The algorithms against naive float64 references, and the property each must have."""

from __future__ import annotations

import pytest
import torch

from qwen3q.calibrate.load import CalibrationOptions, load_calibration
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.source import resolve
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.gptq import factorize, gptq
from qwen3q.quantize.rtn import round_to_nearest
from qwen3q.quantize.solve import SolveOptions, solve_layer
from qwen3q.quantize.stream import stream_layers
from tests.quantize.problems import whole_hessian


def hessian_of(columns: int, tokens: int = 512, seed: int = 0) -> torch.Tensor:
    """Second moments of correlated inputs with a few large channels, float32 ``[1, in, in]``."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=random, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=random, dtype=torch.float64) @ mix
    x[:, ::17] *= 8
    return (x.T @ x / tokens).float()[None]


def naive_gptq(weights, hessian, order, scales, zeros, levels, group_size):
    """Optimal brain quantization with a fixed order: the inverse anew for every channel.

    Frantar and Alistarh, arXiv 2208.11580, in float64; ``weights`` ``[in, out]``.
    """
    w, h = weights.double().clone(), hessian.double()
    steps = torch.empty_like(w)
    left = [int(j) for j in order]
    for j in list(left):
        group = j // group_size
        low, high = -zeros[group], levels - zeros[group]
        steps[j] = (w[j] / scales[group]).round().clamp(low, high)
        index = torch.tensor(left)
        inverse = torch.linalg.inv(h[index][:, index])
        at = left.index(j)
        error = (w[j] - steps[j] * scales[group]) / inverse[at, at]
        w[index] -= inverse[:, at : at + 1] * error
        left.remove(j)
    return steps


def weighted_error(weights, values, hessian) -> float:
    difference = (weights - values).double()
    return float((difference * (hessian.double() @ difference)).sum())


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4"])
def test_gptq_is_optimal_brain_quantization(name):
    scheme = parse_scheme(name, group_size=32)
    weights = torch.randn(1, 96, 24, generator=torch.Generator().manual_seed(1)) * 0.05
    factor = factorize(hessian_of(96), 32, 0.01)
    rounded = gptq(factor.ordered(weights), factor, scheme)
    steps = factor.restored(rounded.steps)[0]
    scales = factor.restored_groups(rounded.scales)[0].double()
    zeros = factor.restored_groups(rounded.zeros)[0].double()
    damped = torch.empty_like(factor.square[0])
    order = factor.order[0]
    damped[order[:, None], order] = whole_hessian(factor)[0]
    naive = naive_gptq(weights[0], damped, order.flip(0), scales, zeros, 15, 32)
    assert (steps.double() == naive).double().mean() > 0.995
    spread = scales.repeat_interleave(32, 0)
    ours = weighted_error(weights[0], steps * spread, damped)
    theirs = weighted_error(weights[0], naive * spread, damped)
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_gptq_is_never_above_rounding_to_nearest(group_size):
    scheme = parse_scheme("gptq:int4", group_size=group_size)
    for seed in range(4):
        hessian = hessian_of(128, seed=seed)
        random = torch.Generator().manual_seed(seed)
        weights = torch.randn(1, 128, 40, generator=random) * 0.05
        plain = round_to_nearest(weights, torch.ones(1, 128), scheme, search=False).values()
        size = scheme.group_of(128)
        factor = factorize(hessian.clone(), size, 0.01)
        values = factor.restored(gptq(factor.ordered(weights), factor, scheme).values())
        assert weighted_error(weights[0], values[0], hessian[0]) < 0.9 * weighted_error(
            weights[0], plain[0], hessian[0]
        )


def test_order_keeps_groups_together():
    """GAR: what stands in g_idx stays ``k // group_size``."""
    factor = factorize(hessian_of(128), 32, 0.01)
    groups = factor.order[0].view(4, 32) // 32
    assert (groups == groups[:, :1]).all()
    assert sorted(groups[:, 0].tolist()) == [0, 1, 2, 3]


def test_hessian_that_never_factors_says_so():
    factor = factorize(torch.zeros(1, 32, 32), 32, 0.01)
    assert factor.damping[0] != factor.damping[0]


def test_damping_grows_until_it_factors():
    """Two tokens for 32 channels: singular, yet solvable."""
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    factor = factorize((x.T @ x)[None] - 0.02 * torch.eye(32), 32, 1e-4)
    assert factor.damping[0] > 1e-4


@pytest.fixture(scope="module")
def solved(demo_folder):
    """Layers 0 and 1 of the demo in four formats, by format."""
    return first_layers(demo_folder, ("gptq:int4", "awq:int4", "int4", "int8"), SolveOptions())


def first_layers(folder, names, options):
    source = resolve(str(folder))
    rows = load_calibration(None, source, CalibrationOptions(samples=8, length=128)).rows
    schemes = [parse_scheme(name) for name in names]
    layers = {scheme.name: [] for scheme in schemes}
    with Checkpoint(folder) as checkpoint:
        for layer in stream_layers(checkpoint, source.config, rows, schemes):
            for scheme in schemes:
                result = solve_layer(layer, scheme, options)
                layers[scheme.name].append(result)
                layer.keep(scheme, result)
            if layer.index == 1:
                break
    return layers


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4", "int4", "int8"])
def test_no_linear_is_worse_than_rounding_to_nearest(solved, name):
    """Output error on the calibration tokens, of every linear."""
    for layer in solved[name]:
        assert len(layer.report) == 7
        for row in layer.report:
            assert row.error <= row.rtn_error * 1.0001, row
            assert not row.fallback


@pytest.mark.parametrize("algorithm", ["awq", "rtn"])
def test_nor_is_one_of_the_algorithms_without_error_feedback(demo_folder, algorithm):
    """SmoothQuant's folds favour the inputs, so weights alone may lose by them."""
    for layers in first_layers(
        demo_folder, ("awq:int4", "int8"), SolveOptions(algorithm=algorithm)
    ).values():
        for row in (row for layer in layers for row in layer.report):
            assert row.error <= row.rtn_error * 1.0001, row
            assert row.algorithm == algorithm


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4", "int4", "int8"])
def test_codes_and_zeros_fit_the_layout(solved, name):
    scheme = parse_scheme(name)
    for layer in solved[name]:
        for linear in layer.linears.values():
            assert linear.codes.dtype == torch.uint8
            assert int(linear.codes.max()) < 2**linear.bits
            assert int(linear.zeros.min()) >= scheme.min_zero
            stored = linear.scales.to(getattr(torch, scheme.scale_dtype)).float()
            assert torch.equal(linear.scales, stored)
            if linear.symmetric:
                assert (linear.zeros == 2 ** (linear.bits - 1)).all()
