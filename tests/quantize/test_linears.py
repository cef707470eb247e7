"""Linears that share an input: the target moves with the drift, and devices change nothing."""

from __future__ import annotations

import pytest
import torch

from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize import linears
from qwen3q.quantize.linears import Problem, SolveOptions, solve
from qwen3q.quantize.rtn import round_to_nearest
from tests.quantize.problems import hessian, inputs, output_error, weights


def problem(weak: tuple[str, ...] = ("",)) -> Problem:
    target = weights(128, 40)
    return Problem(
        weights=[target[0].T],
        hessian=hessian(800, 128),
        cross=torch.zeros_like(target),
        folded=torch.ones(1, 128),
        tokens=(800,),
        weak=weak,
    )


def test_the_target_makes_up_for_inputs_that_drifted() -> None:
    """Against least squares in float64: outputs of the float model from the inputs there are."""
    own, floating = inputs(4000, 128), inputs(4000, 128)
    own = floating + 0.1 * inputs(4000, 128, seed=9)
    weight = weights(128, 40)[0]
    wanted = floating.double() @ weight.double()
    moments = own.double().T @ own.double() / 4000
    drift = own.double().T @ ((floating - own).double() @ weight.double()) / 4000
    scheme = parse_scheme("gptq:int8", group_size=32)

    def error(drift: torch.Tensor) -> float:
        ones, endless = torch.ones(1, 128), (10**9,)
        asked = Problem([weight.T], moments.float()[None], drift, ones, endless, ("",))
        solved = solve(asked, scheme, SolveOptions(damping=1e-4), ["cpu"])
        rounded = solved.linear(0, slice(0, 40), scheme).dequantize().T.double()
        return float((own.double() @ rounded - wanted).square().sum())

    best = torch.linalg.lstsq(own.double(), wanted).solution
    least = float((own.double() @ best - wanted).square().sum())
    assert error(drift.float()[None]) < 1.02 * least
    assert error(torch.zeros(1, 128, 40)) > 1.05 * least


@pytest.mark.parametrize("outputs", [40, 200], ids=["narrow", "wide"])
def test_what_did_not_drift_needs_no_correction(outputs: int) -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    target = weights(128, outputs)
    crosses = (None, torch.zeros(1, 128, min(outputs, 128)))
    with_none, with_zero = (
        solve(
            Problem([target[0].T], hessian(800, 128), cross, torch.ones(1, 128), (800,), ("",)),
            scheme,
            SolveOptions(),
            ["cpu"],
        )
        for cross in crosses
    )
    assert torch.equal(with_none.codes, with_zero.codes)
    assert torch.equal(with_none.scales, with_zero.scales)


@pytest.mark.parametrize(
    "options", [SolveOptions("rtn"), SolveOptions(damping=0.4)], ids=["rtn", "gptq"]
)
def test_reported_errors_are_those_of_the_codes(options: SolveOptions) -> None:
    """On the plain Hessian, without what was added to it for error feedback."""
    scheme = parse_scheme("gptq:int4", group_size=32)
    asked = problem()
    moments = asked.hessian.clone()
    solved = solve(asked, scheme, options, ["cpu"])
    values = solved.linear(0, slice(0, 40), scheme).dequantize().T[None]
    error = output_error(values, asked.target(slice(0, 40)), moments)
    assert float(solved.errors.sum()) == pytest.approx(error, rel=1e-4)
    whole = output_error(torch.zeros_like(values), asked.target(slice(0, 40)), moments)
    assert float(solved.outputs.sum()) == pytest.approx(whole, rel=1e-4)
    assert (solved.errors.sum() < solved.rtn_errors.sum()).all()


@pytest.mark.parametrize("algorithm", ["rtn", "awq"])
@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4", "int8"])
def test_other_algorithms_than_gptq_round_to_nearest(name: str, algorithm: str) -> None:
    scheme = parse_scheme(name)
    asked, target = problem(), weights(128, 40)
    costs = asked.hessian.diagonal(dim1=1, dim2=2).clone()
    solved = solve(asked, scheme, SolveOptions(algorithm), ["cpu"])
    nearest = round_to_nearest(target, costs, scheme)
    assert torch.equal(solved.codes.mT.float(), nearest.codes)
    assert torch.equal(solved.scales.mT, nearest.scales)
    assert torch.equal(solved.zeros.mT.float(), nearest.zeros)


@pytest.mark.parametrize("name", ["gptq:int4", "awq:int4"])
def test_parts_on_several_devices_equal_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = parse_scheme(name, group_size=32)
    alone = solve(problem(), scheme, SolveOptions(), ["cpu"])
    monkeypatch.setattr(linears, "FEWEST_OUTPUTS", 16)
    monkeypatch.setattr(linears, "SOLVED_AT_ONCE", 16 * 128)
    parts = solve(problem(), scheme, SolveOptions(), ["cpu", "cpu:0"])
    assert parts.codes.shape == alone.codes.shape
    assert (parts.codes == alone.codes).float().mean() > 0.995
    assert float(parts.errors.sum()) == pytest.approx(float(alone.errors.sum()), rel=0.01)


def test_fallbacks_are_named() -> None:
    scheme = parse_scheme("gptq:int4", group_size=32)
    asked = problem(weak=("only 3 calibration tokens are routed to it",))
    solved = solve(asked, scheme, SolveOptions(), ["cpu"])
    assert solved.algorithms == ("rtn",)
    assert "3 calibration tokens" in solved.fallbacks[0]
    broken = problem()
    broken.hessian.zero_()
    solved = solve(broken, scheme, SolveOptions(), ["cpu"])
    assert solved.algorithms == ("rtn",)
    assert "could not be factored" in solved.fallbacks[0]
    off = solved.linear(0, slice(0, 40), scheme).dequantize() - broken.weights[0]
    assert off.abs().max() < 0.1 * broken.weights[0].abs().max()


@pytest.mark.parametrize(
    ("seed", "scheme", "outputs", "tokens"),
    [(21, "int4", 8, 2), (190, "int8", 16, 1), (250, "int8", 16, 1), (270, "int8", 8, 1)],
)
def test_a_fallback_of_few_outputs_is_refined_until_it_is_no_worse(
    seed: int, scheme: str, outputs: int, tokens: int
) -> None:
    """Nothing averages out among few outputs, and one sweep may be too little."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, 256, generator=generator)
    if seed % 2:
        x *= 10 * torch.rand(256, generator=generator).pow(6)
    weight = torch.randn(outputs, 256, generator=generator)
    weight *= torch.rand(outputs, 1, generator=generator)
    if seed % 7 == 0:
        weight = weight.pow(3)
    moments = (x.T @ x / tokens)[None]
    asked = Problem([weight], moments, None, torch.ones(1, 256), (tokens,), ("few tokens",))
    solved = solve(asked, parse_scheme(scheme), SolveOptions(), ["cpu"])
    assert float(solved.errors.sum()) <= float(solved.rtn_errors.sum())


def test_a_fallback_is_never_worse_than_round_to_nearest() -> None:
    """On few tokens, scales that were folded for error feedback hurt rounding to nearest."""
    target = weights(128, 60)
    folded = torch.logspace(-1, 1, 128, base=2)[None]
    moments = hessian(24, 128) / (folded[:, :, None] * folded[:, None])
    few = Problem(
        weights=[(target * folded[..., None])[0].T],
        hessian=moments.clone(),
        cross=None,
        folded=folded,
        tokens=(24,),
        weak=("only 24 calibration tokens are routed to it",),
        rows=(40, 20),
    )
    scheme = parse_scheme("int8")
    solved = solve(few, scheme, SolveOptions(damping=1e-6), ["cpu"])
    nearest = round_to_nearest(target, torch.ones(1, 128), scheme, search=False).values()
    for part in (slice(0, 40), slice(40, 60)):
        made = solved.linear(0, part, scheme).dequantize().T[None]
        own = output_error(made, (target * folded[..., None])[:, :, part], moments)
        plain = (nearest - target)[:, :, part] * folded[..., None]
        assert own <= output_error(plain, torch.zeros_like(plain), moments) * 1.0001
        assert own == pytest.approx(float(solved.errors[:, part].sum()), rel=1e-3)
    assert solved.algorithms == ("rtn",)
