"""Coordinate descent: never worse, and in the end no single change is better."""

from __future__ import annotations

import pytest
import torch

from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.gptq import factorize, gptq, unfactored
from qwen3q.quantize.refine import refine
from qwen3q.quantize.rtn import Rounded, round_to_nearest
from tests.quantize.problems import hessian, output_error, weights, whole_hessian


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4", "int4", "int8", "gptq:int2"])
def test_every_sweep_lowers_the_error(name: str) -> None:
    scheme = parse_scheme(name)
    moments, target = hessian(1500, 256), weights(256, 48)
    factor = factorize(moments.clone(), scheme.group_of(256), 0.01)
    ordered = factor.ordered(target)
    rounded = gptq(ordered, factor, scheme)
    whole = whole_hessian(factor)
    errors = [output_error(rounded.values(), ordered, whole)]
    for _ in range(3):
        rounded = refine(ordered, factor, rounded, scheme, 1)
        errors.append(output_error(rounded.values(), ordered, whole))
    assert errors[3] <= errors[2] <= errors[1] < errors[0]
    assert rounded.codes.min() >= 0
    assert rounded.codes.max() <= 2**scheme.bits - 1
    stored = rounded.scales.to(getattr(torch, scheme.scale_dtype)).float()
    assert torch.equal(stored, rounded.scales)


def test_ends_where_no_single_code_or_scale_helps() -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    moments, target = hessian(300, 64), weights(64, 3)
    start = round_to_nearest(target, moments.diagonal(dim1=1, dim2=2), scheme)
    rounded = refine(target, unfactored(moments), start, scheme, 60)
    least = output_error(rounded.values(), target, moments)
    for channel in range(64):
        for out in range(3):
            for move in (-1, 1):
                steps = rounded.steps.clone()
                steps[0, channel, out] += move
                if -8 <= steps[0, channel, out] <= 7:
                    other = Rounded(steps, rounded.scales, rounded.zeros)
                    assert output_error(other.values(), target, moments) >= least * (1 - 1e-6)
    for factor in (0.998, 1.002):
        other = Rounded(rounded.steps, rounded.scales * factor, rounded.zeros)
        assert output_error(other.values(), target, moments) > least


def test_no_sweeps_change_nothing() -> None:
    scheme = parse_scheme("int8")
    moments, target = hessian(300, 64), weights(64, 3)
    start = round_to_nearest(target, torch.ones(1, 64), scheme)
    same = refine(target, unfactored(moments), start, scheme, 0)
    assert torch.equal(same.values(), start.values())


@pytest.mark.parametrize("name", ["gptq:int2", "int4", "awq:int4"])
def test_steps_that_cancel_on_every_token_are_not_blown_up(name: str) -> None:
    """Of equal inputs many a group's steps sum to 0: no scale changes its output."""
    scheme = parse_scheme(name, group_size=32)
    moments, target = torch.ones(1, 128, 128), weights(128, 400)
    start = round_to_nearest(target, torch.ones(1, 128), scheme)
    assert (start.steps.view(1, 4, 32, 400).sum(2) == 0).any()
    refined = refine(target, unfactored(moments), start, scheme, 4)
    assert float(refined.values().abs().max()) < 2 * float(target.abs().max())


def test_zeros_and_inputs_near_zero_stay_numbers() -> None:
    """A group of zeros has bfloat16's smallest scale, and its squared inputs are as small."""
    scheme = parse_scheme("int4")
    target = weights(128, 40)
    target[:, :, ::3] = 0
    factor = factorize(hessian(800, 128) * 1e-18, 128, 0.01)
    ordered = factor.ordered(target)
    refined = refine(ordered, factor, gptq(ordered, factor, scheme), scheme, 2)
    assert torch.isfinite(refined.values()).all()
    assert not refined.values()[:, :, ::3].any()
