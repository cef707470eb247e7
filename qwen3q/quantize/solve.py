"""One scheme of one decoder layer: fold scales into its neighbours, then round every linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qwen3q.plan.schemes import Scheme
    from qwen3q.quantize.grid import QuantizedLinear
    from qwen3q.quantize.stream import StreamedLayer


@dataclass(frozen=True, slots=True)
class SolveOptions:
    """What changes a result, and so belongs into a journal's fingerprint (``asdict`` it).

    Attributes:
        algorithm: ``gptq`` (error feedback and refinement), ``awq`` (scale and clip search, then
            rounding to nearest) or ``rtn`` (range search, rounding to nearest).
        smoothing: fold scales into norms, v_proj and up_proj where the search shows it helps.
        damping: share of the Hessian's mean diagonal added to it; grows until it factors.
        min_expert_tokens: an expert that fewer calibration tokens reach is topped up.
    """

    algorithm: str = "gptq"
    smoothing: bool = True
    damping: float = 0.01
    min_expert_tokens: int = 128


@dataclass(frozen=True, slots=True)
class LinearReport:
    """What was done to one linear.

    Attributes:
        name: checkpoint name (``....weight``).
        bits, group_size, symmetric: the grid it got.
        algorithm: what its codes come from in the end.
        fallback: why it is not the algorithm asked for; empty if it is.
        error: squared output error over the squared output, on the calibration tokens.
        rtn_error: the same of plain round-to-nearest.
        tokens: calibration tokens that reached it (for an expert, the routed ones).
        forced_tokens: tokens added because too few reached it.
        seconds: time it took; linears solved together share theirs equally.
    """

    name: str
    bits: int
    group_size: int
    symmetric: bool
    algorithm: str
    fallback: str
    error: float
    rtn_error: float
    tokens: int
    forced_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SolvedLayer:
    """One decoder layer in one scheme.

    Attributes:
        linears: every quantized linear, by checkpoint name (``....weight``).
        changed: float tensors (norms, a router, a linear kept in float) that differ from the
            checkpoint's, float32 but exactly representable in the checkpoint's dtype.
        report: one entry per quantized linear, in forward order.
        notes: what a person should know, such as which folds were used.
    """

    linears: Mapping[str, QuantizedLinear]
    changed: Mapping[str, torch.Tensor]
    report: tuple[LinearReport, ...]
    notes: tuple[str, ...] = ()


def solve_layer(
    layer: StreamedLayer,
    scheme: Scheme,
    options: SolveOptions = SolveOptions(),  # noqa: B008
) -> SolvedLayer:
    """Quantizes one streamed layer in one scheme, overrides (``Scheme.at``) applied.

    Deterministic given the layer's inputs. Journal everything but ``report`` and ``notes`` to
    restore it; reports hold seconds, which differ from run to run.

    Raises:
        UsageError: an unknown algorithm.
    """
    raise NotImplementedError
