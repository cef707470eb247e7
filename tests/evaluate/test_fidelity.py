"""The definitions, against a plain float64 computation and against repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3q.evaluate.fidelity import (
    TokenScores,
    Workspace,
    compare_rows,
    log_softmax_rows,
    mean,
    quantile,
    summarize_fidelity,
)

ROWS, VOCABULARY = 40, 300


@pytest.fixture
def logits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 3, (ROWS, VOCABULARY)).astype(np.float32)
    model = reference + rng.normal(0, 0.3, reference.shape).astype(np.float32)
    return reference, model, rng.integers(0, VOCABULARY, ROWS).astype(np.int32)


def scores_of(reference, model, targets) -> TokenScores:
    base = log_softmax_rows(reference)
    nll = -base[np.arange(ROWS), targets].astype(np.float64)
    out = TokenScores.empty(ROWS)
    top = base.argmax(axis=1).astype(np.int32)
    compare_rows(
        model, base.copy(), nll, top, targets, out, slice(0, ROWS), Workspace(VOCABULARY, 0)
    )
    return out


def test_scores_equal_the_textbook_sums(logits):
    reference, model, targets = logits

    def softmax(x):
        e = np.exp(x.astype(np.float64))
        return e / e.sum(axis=1, keepdims=True)

    p, q = softmax(reference), softmax(model)
    rows = np.arange(ROWS)
    out = scores_of(reference, model, targets)
    np.testing.assert_allclose(out.kl, (p * np.log(p / q)).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(out.nll, -np.log(q[rows, targets]), rtol=1e-5)
    np.testing.assert_allclose(
        out.probability_change, q[rows, targets] - p[rows, targets], atol=1e-6
    )
    assert (out.same_top == (p.argmax(axis=1) == q.argmax(axis=1))).all()


def test_a_model_does_not_differ_from_itself(logits):
    reference, _, targets = logits
    out = scores_of(reference, reference, targets)
    summary = summarize_fidelity(out, out.nll)
    assert abs(summary.kl_mean.value) < 1e-6
    assert summary.top1.value == 1
    assert summary.probability_rms.value < 1e-6
    assert summary.log_perplexity_ratio.value == pytest.approx(0, abs=1e-9)


def test_inputs_stay_as_they_are(logits):
    reference, model, targets = logits
    before = model.copy()
    scores_of(reference, model, targets)
    assert (model == before).all()


@pytest.mark.parametrize(
    ("statistic", "numpys"),
    [
        (mean, np.mean),
        (lambda x: quantile(x, 0.5), np.median),
        (lambda x: quantile(x, 0.99), lambda x: np.quantile(x, 0.99)),
    ],
    ids=["mean", "median", "p99"],
)
def test_standard_errors_are_the_spread_of_repeated_samples(statistic, numpys):
    rng = np.random.default_rng(5)
    samples = rng.exponential(1, (400, 3000))
    estimates = [statistic(row) for row in samples]
    assert estimates[0].value == pytest.approx(numpys(samples[0]))
    spread = np.std([e.value for e in estimates])
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.15)


def test_a_summarys_errors_are_the_spread_of_repeated_texts():
    rng = np.random.default_rng(6)
    texts = []
    for _ in range(400):
        base, kl = rng.exponential(2, (2, 2000))
        change = rng.normal(0, 0.1, 2000)
        scores = TokenScores(base + change, kl, change, rng.random(2000) < 0.9)
        texts.append(summarize_fidelity(scores, base))
    for name in ("perplexity", "log_perplexity_ratio", "kl_mean", "probability_rms", "top1"):
        estimates = [getattr(text, name) for text in texts]
        spread = np.std([e.value for e in estimates])
        assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.15), name
    assert np.mean([text.top1.value for text in texts]) == pytest.approx(0.9, abs=0.002)
    assert np.mean([text.probability_rms.value for text in texts]) == pytest.approx(0.1, rel=0.01)
    assert np.mean([text.kl_p999.value for text in texts]) == pytest.approx(
        -2 * np.log(1e-3), rel=0.05
    )
