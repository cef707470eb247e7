"""Expected quality of a quantized model, to rank what fits: a rule, not a measurement.

``quality = log2(effective parameters) - (2.9 / bits) ** 4.5``

Effective parameters are all of a dense model's, and the geometric mean of all and active ones of a
MoE. ``bits`` are those of the decoder's linears, scales counted. The loss is negligible at 8 bits,
a tenth of a doubling at 4.85 (Q4_K_M), and equals halving the model at 2.9. Bits of llama.cpp's
older types and of bitsandbytes, which have no second scale or no calibration, count nine tenths.
The best use of a given number of bytes is about 3.7 bits per weight, in line with Dettmers and
Zettlemoyer, "The case for 4-bit precision" (2023, arXiv 2212.09720). Between equals
the newer release wins, and a specialised one (Coder) comes after the general one.
"""

from __future__ import annotations

from math import log2, sqrt

from qwen3q.memory.weights import Weights
from qwen3q.models.catalog import Release

_HALVING_BITS = 2.9
_STEEPNESS = 4.5
_LESS_WORTH = dict.fromkeys(
    ("gguf:Q4_0", "gguf:Q4_1", "gguf:Q5_0", "gguf:Q5_1", "bnb:nf4", "bnb:int8"), 0.9
)
_NEWER = 0.05
_SPECIALISED = -0.05


def expected_quality(release: Release, weights: Weights) -> float:
    """The rank of a release in one quantization; a difference of 1 is a doubling in size."""
    effective = sqrt(release.parameters * release.active_parameters)
    worth = _LESS_WORTH.get(weights.format, 1.0)
    loss: float = (_HALVING_BITS / (worth * weights.linear_bits)) ** _STEEPNESS
    bonus = _NEWER * ("2507" in release.name) + _SPECIALISED * ("coder" in release.name)
    return log2(effective) - loss + bonus
