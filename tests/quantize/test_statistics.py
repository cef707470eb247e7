"""Statistics that are added in portions and strips, by several threads, against whole ones."""

from __future__ import annotations

import pytest
import torch

from qwen3q.calibrate.statistics import Gram, MomentWatch, merged
from qwen3q.quantize.gptq import factorize
from qwen3q.quantize.team import Team
from tests.quantize.problems import inputs


@pytest.mark.parametrize("outputs", [40, 700], ids=["narrow", "wide"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_hessian_and_drift_equal_those_of_all_tokens_at_once(
    outputs: int, threads: int, factors: torch.dtype
) -> None:
    """600 channels are three strips; in float64 from the definitions.

    What is rounded to bfloat16, factors and their product, errs by up to 2^-9 of itself.
    """
    own, missing = inputs(900, 600), 0.1 * inputs(900, 600, seed=4)
    weight = torch.randn(outputs, 600, generator=torch.Generator().manual_seed(2))
    gram = Gram(600, weight if outputs < 600 else None, factors=factors)
    with Team(threads) as team:
        for first in range(0, 900, 256):
            part = [slice(first, min(first + 128, 900)), slice(first + 128, first + 256)]
            pairs = [
                gram.pair(own[rows], (own + missing)[rows]) for rows in part if own[rows].numel()
            ]
            gram.add(pairs, team.map)
    gram.finish()
    assert gram.tokens == 900
    whole = own.double().T @ own.double() / 900
    exact = factors == torch.float32
    close = {"rtol": 1e-4, "atol": 1e-5} if exact else {"rtol": 2**-8, "atol": 2**-10}
    close["atol"] *= float(whole.max())
    assert torch.allclose(gram.hessian.double(), whole, **close)
    assert torch.equal(gram.hessian, gram.hessian.T)
    drift = own.double().T @ missing.double() @ weight.double().T / 900
    assert gram.cross is not None
    found = gram.cross if outputs < 600 else gram.cross @ weight.T
    close["atol"] = (1e-4 if exact else 2**-8) * float(drift.abs().max())
    assert torch.allclose(found.double(), drift, **close)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_massive_activations_leave_second_moments_positive(factors: torch.dtype) -> None:
    """A row's first token is thousands of times larger in a few channels (Sun et al.,
    arXiv 2402.17762): the Hessian still factors with the damping that was asked for."""
    gram = Gram(256, drift=False, factors=factors)
    massive = torch.tensor([9000.0, 7000, -5000, 3000])
    for seed in range(8):
        row = inputs(128, 256, seed)
        row[0, 40:44] = massive
        gram.add([gram.pair(row.bfloat16(), None)])
    gram.finish()
    assert factorize(gram.hessian[None], 128, 0.01).damping == (0.01,)


def test_without_drift_only_the_hessian_is_kept() -> None:
    own = inputs(64, 40)
    gram = Gram(40, drift=False)
    gram.add([gram.pair(own, None)])
    gram.finish()
    assert gram.cross is None
    assert torch.allclose(gram.hessian, own.T @ own / 64, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit_of_the_statistics(factors: torch.dtype) -> None:
    own, floating = inputs(512, 600), inputs(512, 600, seed=3)
    grams = []
    for threads in (1, 2, 4):
        weight = torch.randn(40, 600, generator=torch.Generator().manual_seed(2))
        gram = Gram(600, weight, factors=factors)
        pairs = [gram.pair(own[rows], floating[rows]) for rows in (slice(0, 256), slice(256, 512))]
        with Team(threads) as team:
            team.map(lambda _: None, range(threads))
            if threads == 1:
                before = torch.get_num_threads()
                torch.set_num_threads(1)
                gram.add(pairs, team.map)
                torch.set_num_threads(before)
            else:
                gram.add(pairs, team.map)
        grams.append(gram)
    for other in grams[1:]:
        assert torch.equal(grams[0].hessian, other.hessian)
        assert grams[0].cross is not None
        assert other.cross is not None
        assert torch.equal(grams[0].cross, other.cross)


def test_moments_of_portions_are_those_of_the_whole() -> None:
    weights = {"a": torch.randn(8, 32), "b": torch.randn(8, 32)}
    x = inputs(300, 32)
    watches = []
    for first in range(0, 300, 80):
        watch = MomentWatch(weights)
        watch("a", x[first : first + 80])
        if first < 160:
            watch("b", x[first : first + 80])
        watches.append(watch)
    whole = merged(watches)
    a, b = whole.moments("a", 32), whole.moments("b", 32)
    assert (a.tokens, b.tokens) == (300, 160)
    assert torch.allclose(a.mean_squares, x.square().mean(0), rtol=1e-5)
    assert torch.allclose(b.mean_squares, x[:160].square().mean(0), rtol=1e-5)
    unseen = whole.moments("c", 4)
    assert (unseen.tokens, unseen.mean_squares.tolist()) == (0, [1.0] * 4)
