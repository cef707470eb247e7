"""How far a model's next-token distribution is from its float reference's.

The definitions are those of ``llama-perplexity --kl-divergence``
(``tools/perplexity/perplexity.cpp``). Standard errors take tokens as independent samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3q.evaluate.chunks import perplexity_of

SMALLEST_LOG_PROBABILITY = -16.0
"""Tokens that the reference gives less than e^-16 are left out of the divergence."""
_ELEMENTS_IN_CACHE = 1 << 17
"""Logits that are compared at a time: what is made of them stays in a core's cache."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What each scored position gave.

    Attributes:
        nll: negative log-likelihood of the text's next token, nats.
        kl: KL(reference || model), nats; None where whole distributions are not known.
        probability_change: the next token's probability less the reference's.
        same_top: both rank the same token first; None where it is not known.
    """

    nll: Floats
    kl: Floats | None
    probability_change: Floats
    same_top: NDArray[np.bool_] | None

    @classmethod
    def empty(cls, rows: int) -> TokenScores:
        """Room for ``rows`` positions."""
        return cls(np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows, np.bool_))


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Everything about one artefact on one text.

    Attributes:
        log_perplexity_ratio: ln of perplexity over the reference's, its error taken from pairs.
        kl_mean, kl_median, kl_p99, kl_p999, kl_max: nats; None of a model behind an endpoint.
        probability_rms: root mean square of the next token's change of probability.
        top1: share of positions with the same most likely token; None where it is not known.
    """

    tokens: int
    perplexity: Estimate
    log_perplexity_ratio: Estimate
    kl_mean: Estimate | None
    kl_median: Estimate | None
    kl_p99: Estimate | None
    kl_p999: Estimate | None
    kl_max: float | None
    probability_rms: Estimate
    top1: Estimate | None


def fidelity_from(plain: Mapping[str, Any]) -> Fidelity:
    """The inverse of ``dataclasses.asdict``."""
    fields: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, Mapping) else value
        for name, value in plain.items()
    }
    return Fidelity(**fields)


def log_softmax_rows(
    logits: NDArray[np.float32],
    out: NDArray[np.float32] | None = None,
    scratch: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Log-probabilities float32 ``[rows, vocabulary]``; ``logits`` stay as they are.

    All in float32; numpy adds such long rows in pairs, which costs 1e-7 of their sum.

    Args:
        out, scratch: where to write them, and room for the exponentials; as large as ``logits``.
    """
    out = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    out -= np.log(np.exp(out, out=scratch).sum(axis=1, keepdims=True))
    return out


class Workspace:
    """Room for what a comparison makes on its way. One thread uses it again and again: memory that
    is fresh for every row costs more time than the arithmetic in it.
    """

    def __init__(self, vocabulary: int, rows: int) -> None:
        """Room for comparisons of up to ``rows`` rows."""
        self.step = max(1, _ELEMENTS_IN_CACHE // vocabulary)
        self.reference = np.empty((rows, vocabulary), np.float32)
        self.ours = np.empty((self.step, vocabulary), np.float32)
        self.weighted = np.empty((self.step, vocabulary), np.float32)
        self.likely = np.empty((self.step, vocabulary), np.bool_)


def compare_rows(
    logits: NDArray[np.float32],
    reference: NDArray[np.float32],
    reference_nll: Floats,
    reference_top: NDArray[np.int32],
    targets: NDArray[np.int32],
    out: TokenScores,
    rows: slice,
    space: Workspace,
) -> None:
    """Scores ``rows`` of ``out``.

    Args:
        logits: the model's, float32 ``[rows, vocabulary]``.
        reference: the reference's log-probabilities, the same shape; overwritten.
        targets: the text's next token of each row.
    """
    assert out.kl is not None
    assert out.same_top is not None
    for first in range(0, len(targets), space.step):
        part = slice(first, min(first + space.step, len(targets)))
        count = part.stop - first
        ours, weighted, likely = space.ours[:count], space.weighted[:count], space.likely[:count]
        log_softmax_rows(logits[part], ours, weighted)
        nll = -ours[np.arange(count), targets[part]].astype(np.float64)
        np.exp(reference[part], out=weighted)
        weighted *= np.greater(reference[part], SMALLEST_LOG_PROBABILITY, out=likely)
        reference[part] -= ours
        weighted *= reference[part]
        to = slice(rows.start + part.start, rows.start + part.stop)
        out.nll[to] = nll
        out.kl[to] = weighted.sum(axis=1)
        out.probability_change[to] = np.exp(-nll) - np.exp(-reference_nll[part])
        out.same_top[to] = ours.argmax(axis=1) == reference_top[part]


def summarize_fidelity(scores: TokenScores, reference_nll: Floats) -> Fidelity:
    """The figures of one artefact."""
    count = len(scores.nll)
    log_perplexity = mean(scores.nll)
    squares = mean(scores.probability_change**2)
    rms = sqrt(squares.value)
    perplexity = perplexity_of(log_perplexity.value)
    kl = scores.kl
    return Fidelity(
        tokens=count,
        perplexity=Estimate(perplexity, perplexity * log_perplexity.stderr),
        log_perplexity_ratio=mean(scores.nll - reference_nll),
        kl_mean=None if kl is None else mean(kl),
        kl_median=None if kl is None else quantile(kl, 0.5),
        kl_p99=None if kl is None else quantile(kl, 0.99),
        kl_p999=None if kl is None else quantile(kl, 0.999),
        kl_max=None if kl is None else float(kl.max()),
        probability_rms=Estimate(rms, 0.5 / rms * squares.stderr if rms else 0.0),
        top1=None if scores.same_top is None else _share(scores.same_top),
    )


def _share(holds: NDArray[np.bool_]) -> Estimate:
    """How often it holds, and the binomial standard error."""
    share = float(holds.mean())
    return Estimate(share, sqrt(share * (1 - share) / max(1, len(holds) - 1)))


def mean(values: Floats) -> Estimate:
    """The mean and its standard error."""
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def quantile(values: Floats, share: float) -> Estimate:
    """A quantile, linear between order statistics.

    Its standard error is half the spread of the order statistics one binomial deviation to either
    side (Woodruff, 1952).
    """
    spread = sqrt(share * (1 - share) / len(values))
    at = np.clip([share - spread, share, share + spread], 0, 1)
    low, middle, high = np.quantile(values, at)
    return Estimate(float(middle), float(high - low) / 2)
