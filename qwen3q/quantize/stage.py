"""A layer at work: which linears are done, what runs with them, and what is reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import prod

import torch

from qwen3q.calibrate.statistics import Gram, InputPair
from qwen3q.formats.grid import QuantizedLinear
from qwen3q.models.decoder import ROUTER, Linear
from qwen3q.plan.schemes import Scheme
from qwen3q.process_memory import give_back_free_memory
from qwen3q.quantize.activations import Activations
from qwen3q.quantize.folds import Folds
from qwen3q.quantize.linears import LinearReport, Problem, Solution, SolveOptions, solve
from qwen3q.quantize.stream import StreamedLayer

_LARGE_BYTES = 64 << 20
"""A stage whose weights take this much gives freed memory back; a smaller one would only have to
fetch it again."""
_WAITING_BYTES = 16 << 20


class LayerWork:
    """One layer in one scheme while its stages are solved.

    Attributes:
        linears: solved so far, by checkpoint name.
        weights: what the decoder runs with, by short name: solved linears dequantized, the others
            folded but in float.
        float_inputs: the float model's activations, where linears are fitted to them.
        middle, output: the residual stream after attention and after the layer.
        notes: what a person should know.
    """

    def __init__(
        self, layer: StreamedLayer, scheme: Scheme, options: SolveOptions, folds: Folds
    ) -> None:
        self.layer = layer
        self.scheme = scheme
        self.options = options
        self.folds = folds
        self._drift = options.corrects_drift(scheme)
        fitted_to_float = self._drift or scheme.activation_bits is not None
        self.float_inputs = layer.inputs if fitted_to_float else None
        self.linears: dict[str, QuantizedLinear] = {}
        self.notes = list(folds.notes)
        self.middle = layer.store.new(layer.config.hidden_size)
        self.output = layer.store.new(layer.config.hidden_size)
        self._room: list[Activations] = []
        self._reports: dict[str, LinearReport] = {}
        floats = {
            short: self.folded(short)
            for short, spec in layer.specs.items()
            if not spec.is_linear or scheme.at(spec.name) is None
        }
        self.weights = layer.arithmetic.prepare(floats)
        rounded = {s for s, spec in layer.specs.items() if s not in floats and spec.is_linear}
        self.linear: Linear = layer.arithmetic.linear(self.weights, scheme, rounded)

    def folded(self, short: str) -> torch.Tensor:
        """A float tensor of the layer after folding, float32; the caller's to change."""
        if short in self.folds.norms:
            return self.folds.norms[short].clone()
        return self.folds.weight(short, self.layer.weights[self.layer.specs[short].name])

    def changed(self) -> dict[str, torch.Tensor]:
        """Float tensors that folding changed, by checkpoint name."""
        names = [*self.folds.norms, *({ROUTER} & self.folds.inputs.keys())]
        return {self.layer.specs[name].name: self.folded(name) for name in names}

    def input_scales(self, short: str) -> torch.Tensor:
        """What a float input is divided by to be the folded layer's."""
        width = self.layer.specs[short].shape[1]
        return self.folds.scales(short, width).to(self.layer.arithmetic.device)

    def portions(self) -> Iterator[slice]:
        return self.layer.arithmetic.portions(self.layer.store)

    def each(self, run: Callable[[slice], None]) -> None:
        """Calls ``run`` for every portion, several at a time."""
        self.layer.arithmetic.each(self.layer.store, run)

    def read(self, source: Activations, part: slice) -> torch.Tensor:
        return source.read(part, self.layer.arithmetic.device)

    def room(self, width: int) -> Activations:
        """A place for what runs between two stages; freed with the work at the latest."""
        made = self.layer.store.new(width, self.layer.arithmetic.dtype)
        self._room.append(made)
        return made

    def quantized(self, names: Sequence[str]) -> dict[Scheme, list[str]]:
        """Those linears that are to be quantized, by the scheme they get."""
        found: dict[Scheme, list[str]] = {}
        for name in names:
            scheme = self.scheme.at(self.layer.specs[name].name)
            if scheme is not None:
                found.setdefault(scheme, []).append(name)
        return found

    def gram(self, names: Sequence[str]) -> Gram:
        """Statistics to be filled, for linears that share an input and a scheme."""
        arithmetic = self.layer.arithmetic
        shapes = [self.layer.specs[name].shape for name in names]
        columns = shapes[0][1]
        weight = None
        if self._drift and sum(out for out, _ in shapes) < columns:
            weight = self._stacked(names, arithmetic.dtype)
        return arithmetic.gram(columns, weight, drift=self._drift)

    def _stacked(self, names: Sequence[str], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Folded weights of linears that share an input, ``[out, in]``."""
        shapes = [self.layer.specs[name].shape for name in names]
        weights = torch.empty(sum(out for out, _ in shapes), shapes[0][1], dtype=dtype)
        start = 0
        for name, (out, _) in zip(names, shapes, strict=True):
            weights[start : start + out] = self.folded(name)
            start += out
        return weights.to(self.layer.arithmetic.device)

    def pair(self, gram: Gram, own: torch.Tensor, floating: torch.Tensor | None) -> InputPair:
        """A linear's inputs under the quantized prefix and in the float model, to be added.

        Args:
            own, floating: ``[..., in]``, the same tokens; ``floating`` from ``float_inputs``.
        """
        if floating is not None and self.scheme.activation_bits is not None:
            own, floating = floating, None
        return gram.pair(own.flatten(0, -2), None if floating is None else floating.flatten(0, -2))

    def solve_stage(
        self,
        names: Sequence[str],
        inputs: Callable[[slice], tuple[torch.Tensor, torch.Tensor | None]],
        last_use: Sequence[str] = (),
    ) -> None:
        """Rounds linears that share an input, and puts them among ``weights``.

        Args:
            inputs: a portion's inputs under the quantized prefix, and in the float model if there
                are ``float_inputs``.
            last_use: weights that nothing but ``inputs`` runs with any more.
        """
        shapes = [self.layer.specs[name].shape for name in names]
        large = 4 * sum(map(prod, shapes)) >= _LARGE_BYTES
        if large:
            give_back_free_memory()
        groups = self.quantized(names)
        grams = [self.gram(group) for group in groups.values()]
        team = self.layer.arithmetic.team

        def pairs(part: slice) -> list[InputPair]:
            own, floating = inputs(part)
            return [self.pair(gram, own, floating) for gram in grams]

        with self.layer.arithmetic.products():
            for parts in _batches(self.portions(), self._together(shapes[0][1])):
                made = team.map(pairs, parts)
                for number, gram in enumerate(grams):
                    gram.add([of_part[number] for of_part in made], team.map)
        for name in last_use:
            self.weights.pop(name)
        if large:
            give_back_free_memory()
        for group_scheme, group in groups.items():
            self.solve_batch([group], [grams.pop(0)], group_scheme)

    def _together(self, columns: int) -> int:
        """Portions whose inputs wait for each other to be added; threads meet once for all."""
        arithmetic = self.layer.arithmetic
        tokens = arithmetic.rows * self.layer.store.length
        pair_bytes = 2 * arithmetic.factors.itemsize * columns * tokens
        return arithmetic.team.size * max(1, _WAITING_BYTES // (arithmetic.team.size * pair_bytes))

    def solve_batch(
        self,
        entries: Sequence[Sequence[str]],
        grams: Sequence[Gram],
        scheme: Scheme,
        weak: Sequence[str] = (),
        forced: Sequence[int] = (),
    ) -> None:
        """Rounds several sets of linears of one shape side by side, such as experts.

        Args:
            entries: per batch entry, linears that share an input, all of this scheme.
            grams: per batch entry, its inputs' statistics; used up.
            weak: per batch entry, why error feedback is not to be trusted, or an empty string.
            forced: per batch entry, how many of its tokens were forced upon it.
        """
        started = time.perf_counter()
        width = self.layer.specs[entries[0][0]].shape[1]
        for gram in grams:
            gram.finish()
        crosses = [gram.cross for gram in grams if gram.cross is not None]
        problem = Problem(
            weights=[self._stacked(names) for names in entries],
            hessian=_batched([gram.hessian for gram in grams]),
            cross=_batched(crosses) if crosses else None,
            folded=torch.stack([self.folds.scales(names[0], width) for names in entries]),
            tokens=tuple(gram.tokens for gram in grams),
            weak=tuple(weak) or ("",) * len(entries),
            rows=tuple(self.layer.specs[name].shape[0] for name in entries[0]),
        )
        team = self.layer.arithmetic.team
        solution = solve(problem, scheme, self.options, self.layer.devices, team)
        del problem, crosses
        for gram in grams:
            gram.free()
        count = sum(len(names) for names in entries)
        seconds = (time.perf_counter() - started) / count
        for entry, names in enumerate(entries):
            start = 0
            for name in names:
                outputs = slice(start, start + self.layer.specs[name].shape[0])
                start = outputs.stop
                self._put(name, solution.linear(entry, outputs, scheme))
                errors = _relative_errors(solution, entry, outputs)
                self._reports[name] = LinearReport(
                    name=self.layer.specs[name].name,
                    bits=scheme.bits,
                    group_size=scheme.group_of(width),
                    symmetric=scheme.symmetric,
                    algorithm=solution.algorithms[entry],
                    fallback=solution.fallbacks[entry],
                    error=errors[0],
                    rtn_error=errors[1],
                    tokens=grams[entry].tokens - (forced[entry] if forced else 0),
                    forced_tokens=forced[entry] if forced else 0,
                    seconds=seconds,
                )

    def _put(self, name: str, linear: QuantizedLinear) -> None:
        self.linears[self.layer.specs[name].name] = linear
        self.weights |= self.layer.arithmetic.prepare({name: linear.dequantize()})

    def report(self) -> tuple[LinearReport, ...]:
        """One entry per quantized linear, in forward order."""
        return tuple(self._reports[name] for name in self.layer.specs if name in self._reports)

    def free(self) -> None:
        """Gives back all room but ``output``, which the stream takes over."""
        for activations in (self.middle, *self._room):
            activations.free()


def _batches(portions: Iterator[slice], size: int) -> Iterator[list[slice]]:
    """``size`` portions at a time, fewer at the end."""
    while batch := list(islice(portions, size)):
        yield batch


def _batched(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """With a batch dimension; a single matrix stays where it is."""
    return matrices[0][None] if len(matrices) == 1 else torch.stack(tuple(matrices))


def _relative_errors(solution: Solution, entry: int, outputs: slice) -> tuple[float, float]:
    """Squared output error over the squared output: of the solution, and of plain rounding."""
    whole = float(solution.outputs[entry, outputs].sum())
    if whole == 0:
        return 0.0, 0.0
    error = float(solution.errors[entry, outputs].sum())
    return error / whole, float(solution.rtn_errors[entry, outputs].sum()) / whole
