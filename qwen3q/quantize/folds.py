"""Which scales a layer folds into its neighbours, searched on the float model's inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from qwen3q.counts import counted
from qwen3q.models.decoder import (
    DOWN,
    GATE_UP,
    O_PROJ,
    QKV,
    ROUTER,
    expert_names,
    rms_norm,
)
from qwen3q.plan.schemes import Scheme
from qwen3q.quantize.activations import Activations
from qwen3q.quantize.awq import search_scales
from qwen3q.quantize.gptq import factorize, shrinkage
from qwen3q.quantize.limits import FITTED_OUTPUTS, SAMPLE_STRIDE, too_few
from qwen3q.quantize.linears import SolveOptions
from qwen3q.quantize.smooth import (
    SmoothTarget,
    fold_into_norm,
    powers_of_two,
    value_tie,
)
from qwen3q.quantize.stream import LayerInputs, StreamedLayer

_SAMPLE_TOKENS = 512

ATTENTION_NORM = "input_layernorm"
MLP_NORM = "post_attention_layernorm"
V_PROJ = QKV[2]
UP_PROJ = GATE_UP[1]


@dataclass(frozen=True, slots=True)
class Folds:
    """A layer in which some linears' inputs are divided by scales, and whose function is the same.

    Attributes:
        inputs: by linear's short name, scales ``[in]`` that its columns are multiplied by.
        outputs: by linear's short name, scales ``[out]`` that its rows are divided by.
        norms: changed norms by short name, representable in the checkpoint's dtype.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, torch.Tensor] = field(default_factory=dict)

    def weight(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A linear's weights ``[out, in]`` after folding, or the router's."""
        if name in self.inputs:
            weight = weight * self.inputs[name]
        if name in self.outputs:
            weight = weight / self.outputs[name][:, None]
        return weight

    def scales(self, name: str, width: int) -> torch.Tensor:
        """The scales on a linear's columns, ones where there are none."""
        return self.inputs.get(name, torch.ones(width))

    @property
    def notes(self) -> tuple[str, ...]:
        """Ahead of which linears scales are folded, in forward order."""
        words = [
            f"{kind} of {counted(count, 'expert')}" if is_expert else kind
            for (kind, is_expert), count in Counter(map(_kind, self.inputs)).items()
        ]
        return (f"scales folded ahead of {', '.join(words)}",) if words else ()


def _kind(name: str) -> tuple[str, bool]:
    """What a linear is, and whether it is an expert's."""
    kind = "the router" if name == ROUTER else name.rpartition(".")[2]
    return kind, ".experts." in name


def search_folds(layer: StreamedLayer, scheme: Scheme, options: SolveOptions) -> Folds:
    """Scales for every input of a layer where they lower the expected error.

    A fold is left out where one of its linears is kept in float, which would have to change.
    """
    folds = Folds()
    if not options.smoothing or options.algorithm == "rtn":
        return folds
    search = _Search(layer, scheme, options)
    _fold_norm(search, folds, ATTENTION_NORM, QKV)
    if search.all_quantized((V_PROJ, O_PROJ)):
        tie = value_tie(layer.config)
        scales = search.best((O_PROJ,), search.inputs.mixed, tie)
        if scales is not None:
            first = torch.empty(layer.config.kv_size).scatter_(0, tie, scales)
            _fold_rows(folds, V_PROJ, first, O_PROJ, first[tie])
    if search.inputs.inner is not None:
        _fold_norm(search, folds, MLP_NORM, GATE_UP)
        if search.all_quantized((UP_PROJ, DOWN)):
            scales = search.best((DOWN,), search.inputs.inner)
            if scales is not None:
                _fold_rows(folds, UP_PROJ, scales, DOWN, scales)
        return folds
    names = [expert_names(expert) for expert in range(layer.config.num_experts)]
    _fold_norm(search, folds, MLP_NORM, tuple(n for gate, up, _ in names for n in (gate, up)))
    for _, up, down in names:
        if search.all_quantized((up, down)):
            scales = search.best_by_moments(down)
            if scales is not None:
                _fold_rows(folds, up, scales, down, scales)
    return folds


def _fold_rows(
    folds: Folds, before: str, rows: torch.Tensor, after: str, columns: torch.Tensor
) -> None:
    folds.outputs[before] = rows
    folds.inputs[after] = columns


def _fold_norm(search: _Search, folds: Folds, norm: str, linears: tuple[str, ...]) -> None:
    """Scales between a norm and the linears behind it, the router included."""
    if not search.all_quantized(linears):
        return
    layer = search.layer
    scales = search.best_behind_norm(norm, linears)
    if scales is None:
        return
    routed = norm == MLP_NORM and ROUTER in layer.specs
    if routed:
        scales = powers_of_two(scales)
    weight = layer.weights[layer.specs[norm].name]
    folds.norms[norm], exact = fold_into_norm(weight, scales, layer.dtypes[norm])
    folds.inputs.update(dict.fromkeys(linears, exact))
    if routed:
        folds.inputs[ROUTER] = exact


@dataclass(frozen=True, slots=True)
class _Search:
    """Finds scales on one layer."""

    layer: StreamedLayer
    scheme: Scheme
    options: SolveOptions

    @property
    def inputs(self) -> LayerInputs:
        assert self.layer.inputs is not None
        return self.layer.inputs

    def all_quantized(self, names: tuple[str, ...]) -> bool:
        return all(self.scheme.at(self.layer.specs[name].name) is not None for name in names)

    def best_behind_norm(self, norm: str, linears: tuple[str, ...]) -> torch.Tensor | None:
        """Scales of the channels that a norm makes."""
        weight = self.layer.weights[self.layer.specs[norm].name].to(self.layer.arithmetic.device)
        source = self.inputs.hidden if norm == ATTENTION_NORM else self.inputs.middle
        eps = self.layer.config.rms_norm_eps
        return self._best(linears, (rms_norm(x, weight, eps) for x in self._portions(source)))

    def best(
        self, linears: tuple[str, ...], source: Activations, tie: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Scales of the channels of an input that lies in ``source``."""
        return self._best(linears, self._portions(source), tie)

    def best_by_moments(self, linear: str) -> torch.Tensor | None:
        """Scales of an expert's inner channels, by their mean squares alone."""
        spec = self.layer.specs[linear]
        moments = self.layer.sampled_moments[spec.name]
        if too_few(moments.tokens, self.options.min_expert_tokens):
            return None
        importance = moments.mean_squares[None]
        return self._searched(SmoothTarget(self._stacked((linear,)), importance), linear)

    def _best(
        self,
        linears: tuple[str, ...],
        portions: Iterator[torch.Tensor],
        tie: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        first = self.layer.specs[linears[0]]
        tokens = None
        if self.options.algorithm == "gptq" or self.scheme.activation_bits is not None:
            hessian, tokens = self._sampled_inputs(portions, first.shape[1])
        if self.options.algorithm == "gptq":
            size = self.scheme.group_of(first.shape[1])
            store = self.layer.store
            shrunk_by = [shrinkage(first.shape[1], store.rows * store.length)]
            factor = factorize(hessian[None], size, self.options.damping, shrunk_by)
            importance = factor.costs()
            del hessian, factor
        else:
            importance = self._mean_squares(linears)[None]
        if self.scheme.activation_bits is None:
            tokens = None
        target = SmoothTarget(self._stacked(linears), importance.cpu(), tie, tokens)
        return self._searched(target, linears[0])

    def _mean_squares(self, linears: tuple[str, ...]) -> torch.Tensor:
        """Of the input ``[in]`` that linears share, over the tokens of all: an expert sees some."""
        specs = [self.layer.specs[name] for name in linears]
        moments = [self.layer.sampled_moments[spec.name] for spec in specs]
        if specs[0].expert is None:
            return moments[0].mean_squares
        tokens = torch.tensor([float(seen.tokens) for seen in moments])
        return tokens @ torch.stack([seen.mean_squares for seen in moments]) / tokens.sum()

    def _searched(self, target: SmoothTarget, linear: str) -> torch.Tensor | None:
        scheme = self.scheme.at(self.layer.specs[linear].name)
        assert scheme is not None
        return search_scales(target, scheme, self.layer.arithmetic.team.map)

    def _stacked(self, linears: tuple[str, ...]) -> torch.Tensor:
        """``[1, in, out]``: at most about ``FITTED_OUTPUTS`` outputs, taken evenly from all."""
        total = sum(self.layer.specs[name].shape[0] for name in linears)
        stride = -(-total // FITTED_OUTPUTS)
        weights = [self.layer.weights[self.layer.specs[name].name][::stride] for name in linears]
        return torch.cat(weights).T[None].contiguous()

    def _portions(self, source: Activations) -> Iterator[torch.Tensor]:
        arithmetic = self.layer.arithmetic
        for part in arithmetic.portions(self.layer.store, SAMPLE_STRIDE):
            yield source.read(part, arithmetic.device)

    def _sampled_inputs(
        self, portions: Iterator[torch.Tensor], width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of ``x^T x`` and about ``_SAMPLE_TOKENS`` inputs ``[tokens, in]``."""
        arithmetic, store = self.layer.arithmetic, self.layer.store
        gram = arithmetic.gram(width, drift=False)
        stride = max(1, store.rows * store.length // (SAMPLE_STRIDE * _SAMPLE_TOKENS))
        samples: list[torch.Tensor] = []
        with arithmetic.products():
            for portion in portions:
                pair = gram.pair(portion.flatten(0, 1), None)
                gram.add([pair], arithmetic.team.map)
                samples.append(pair.own[: pair.tokens : stride].to(torch.float32, copy=True))
        gram.finish()
        return gram.hessian, torch.cat(samples).cpu()
