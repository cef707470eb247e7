"""One scheme of one decoder layer: fold scales into its neighbours, then round every linear.

The linears are solved in stages, each with one input: q/k/v, o, gate/up, down. A stage's Hessian
comes from the inputs that the stages before it make once they are quantized, and its target is
what the float model puts out, so later stages make up for earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qwen3q.formats.grid import QuantizedLinear
from qwen3q.models.decoder import DOWN, GATE_UP, O_PROJ, QKV, attention, gated, rms_norm
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.activations import Activations
from qwen3q.quantize.experts import solve_experts
from qwen3q.quantize.folds import ATTENTION_NORM, MLP_NORM, search_folds
from qwen3q.quantize.linears import LinearReport, SolveOptions
from qwen3q.quantize.stage import LayerWork
from qwen3q.quantize.stream import StreamedLayer

_Inputs = tuple[torch.Tensor, torch.Tensor | None]
"""A portion's inputs under the quantized prefix and, where they are used, in the float model."""

__all__ = ["LinearReport", "SolveOptions", "SolvedLayer", "solve_layer"]


@dataclass(frozen=True, slots=True)
class SolvedLayer:
    """One decoder layer in one scheme.

    Attributes:
        linears: every quantized linear, by checkpoint name (``....weight``).
        changed: float tensors (norms, a router) that differ from the checkpoint's, float32 but
            exactly representable in the checkpoint's dtype.
        report: one entry per quantized linear, in forward order.
        notes: what a person should know, such as which folds were used.
    """

    linears: Mapping[str, QuantizedLinear]
    changed: Mapping[str, torch.Tensor]
    report: tuple[LinearReport, ...]
    notes: tuple[str, ...] = ()


def solve_layer(
    layer: StreamedLayer, scheme: Scheme, options: SolveOptions | None = None
) -> SolvedLayer:
    """Quantizes one streamed layer in one scheme, overrides (``Scheme.at``) applied.

    Deterministic given the layer's inputs. Journal everything but ``report`` and ``notes`` to
    restore it; reports hold seconds, which differ from run to run.
    """
    options = options or SolveOptions()
    folds = search_folds(layer, scheme, options)
    work = LayerWork(layer, scheme, options, folds)
    try:
        _solve_attention(work)
        if layer.config.is_moe_layer(layer.index):
            solve_experts(work)
        else:
            _solve_mlp(work)
        layer.put_output(scheme, work.output)
    finally:
        work.free()
    return SolvedLayer(work.linears, work.changed(), work.report(), tuple(work.notes))


def _solve_attention(work: LayerWork) -> None:
    """q/k/v and o; leaves the residual stream after attention in ``work.middle``."""
    config, floats = work.layer.config, work.float_inputs
    hidden = work.layer.own_hidden(work.scheme)
    mixed = work.room(config.q_size)
    scales = work.input_scales(O_PROJ)

    def attended(part: slice) -> _Inputs:
        x = work.read(hidden, part)
        own = attention(x, work.weights, config, work.layer.rope, work.linear)
        mixed.write(part, own)
        return own, work.read(floats.mixed, part) / scales if floats else None

    normed = _both_normed(work, ATTENTION_NORM, hidden, floats.hidden if floats else None)
    work.solve_stage(QKV, normed)
    work.solve_stage((O_PROJ,), attended, last_use=QKV)

    def finish(part: slice) -> None:
        out = work.linear(O_PROJ, work.read(mixed, part))
        work.middle.write(part, work.read(hidden, part) + out)

    work.each(finish)
    mixed.free()


def _solve_mlp(work: LayerWork) -> None:
    """gate/up and down of a dense layer; leaves the layer's output in ``work.output``."""
    config, floats = work.layer.config, work.float_inputs
    inner_float = floats.inner if floats else None
    inner = work.room(config.intermediate_size)
    scales = work.input_scales(DOWN)

    def gate_times_up(part: slice) -> _Inputs:
        x = _normed(work, MLP_NORM, work.middle, part).to(work.layer.arithmetic.dtype)
        own = gated(x, *GATE_UP, work.linear)
        inner.write(part, own)
        return own, work.read(inner_float, part) / scales if inner_float else None

    normed = _both_normed(work, MLP_NORM, work.middle, floats.middle if floats else None)
    work.solve_stage(GATE_UP, normed, last_use=(O_PROJ,))
    work.solve_stage((DOWN,), gate_times_up, last_use=GATE_UP)

    def finish(part: slice) -> None:
        out = work.linear(DOWN, work.read(inner, part))
        work.output.write(part, work.read(work.middle, part) + out)

    work.each(finish)
    inner.free()


def _normed(work: LayerWork, norm: str, source: Activations, part: slice) -> torch.Tensor:
    return rms_norm(work.read(source, part), work.weights[norm], work.layer.config.rms_norm_eps)


def _both_normed(
    work: LayerWork, norm: str, own: Activations, floating: Activations | None
) -> Callable[[slice], _Inputs]:
    """A portion behind a norm, under the quantized prefix and in the float model."""

    def run(part: slice) -> _Inputs:
        floats = _normed(work, norm, floating, part) if floating else None
        return _normed(work, norm, own, part), floats

    return run
