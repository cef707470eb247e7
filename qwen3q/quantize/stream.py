"""Decoder layers one at a time, with their float weights and the inputs calibration gives them.

Memory holds one layer. Activations of all calibration rows lie in host memory, or in files under
a work folder when they would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwen3q.calibrate.statistics import InputMoments, MomentWatch, merged
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import UsageError
from qwen3q.models.config import Qwen3Config
from qwen3q.models.decoder import (
    DOWN,
    GATE_UP,
    O_PROJ,
    Rope,
    attention,
    decoder_layer,
    gated,
    mlp,
    plain_linear,
    rms_norm,
    rope_table,
)
from qwen3q.models.tensors import TensorSpec, layer_tensors
from qwen3q.progress import ProgressFn, silent
from qwen3q.quantize.activations import Activations, ActivationStore
from qwen3q.quantize.arithmetic import Arithmetic, arithmetic_for
from qwen3q.quantize.layer_weights import EMBEDDING, LayerWeights, embedded
from qwen3q.quantize.limits import SAMPLE_STRIDE

if TYPE_CHECKING:
    from qwen3q.plan.schemes import Scheme
    from qwen3q.quantize.solve import SolvedLayer

Restore = Callable[[int, "Scheme"], "SolvedLayer"]
"""Reads back what was solved before: (layer, scheme) to a SolvedLayer; its report may be empty."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How the stream runs; none of it changes a result.

    Attributes:
        devices: where layers run; with several, a layer's linears are solved side by side.
        memory_bytes: host memory that activations may take before they go to files.
        work_folder: where such files go; they are removed at the end.
    """

    devices: tuple[str, ...] = ("cpu",)
    memory_bytes: int = 8 << 30
    work_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What the float model computes on the way through one layer, for all rows.

    Attributes:
        hidden: the layer's input.
        mixed: attention's output, o_proj's input.
        middle: the residual stream after attention.
        inner: down_proj's input of a dense layer; None where the layer has experts.
    """

    hidden: Activations
    mixed: Activations
    middle: Activations
    inner: Activations | None


class StreamedLayer:
    """One decoder layer on its way through.

    Attributes:
        index: which decoder layer.
        config: the model's.
        specs: its tensors by short name (``self_attn.q_proj``).
        weights: its float32 tensors by checkpoint name (``model.layers.3.mlp.up_proj.weight``),
            each read when it is asked for.
        dtypes: the tensors' dtypes in the checkpoint, by short name.
        moments: mean squares and token counts of every linear's input under the float model, by
            checkpoint name: the GGUF importance matrix. Empty unless ``importance`` is asked for.
        sampled_moments: the same of every ``SAMPLE_STRIDE``-th portion, the sample that scales
            are searched on; equal whether the float model runs on all rows or on these.
        inputs: the float model's activations, where it runs; only with schemes.
        store: makes room for more activations.
        arithmetic: how and in what portions activations are run.
        rope: the rotary table of one row.
        devices: where linears are solved.
    """

    def __init__(
        self,
        index: int,
        config: Qwen3Config,
        weights: LayerWeights,
        store: ActivationStore,
        arithmetic: Arithmetic,
        rope: Rope,
        devices: tuple[str, ...],
        prefixes: Mapping[Scheme, Activations],
    ) -> None:
        self.index = index
        self.config = config
        self.specs: dict[str, TensorSpec] = {
            short_name(spec.name): spec for spec in layer_tensors(config, index)
        }
        self.weights: Mapping[str, torch.Tensor] = weights
        self.dtypes = {short_name(name): weights.dtype(name) for name in weights}
        self.store = store
        self.arithmetic = arithmetic
        self.rope = rope
        self.devices = devices
        self.moments: Mapping[str, InputMoments] = {}
        self.sampled_moments: Mapping[str, InputMoments] = {}
        self.inputs: LayerInputs | None = None
        self._prefixes = prefixes
        self._outputs: dict[Scheme, Activations] = {}
        self._kept: set[Scheme] = set()

    def prepared_weights(self) -> dict[str, torch.Tensor]:
        """The float model's weights by short name, as the decoder takes them."""
        prepared: dict[str, torch.Tensor] = {}
        for short, spec in self.specs.items():
            prepared |= self.arithmetic.prepare({short: self.weights[spec.name]})
        return prepared

    def own_hidden(self, scheme: Scheme) -> Activations:
        """This layer's input under the scheme's own quantized prefix."""
        return self._prefixes[scheme]

    def put_output(self, scheme: Scheme, output: Activations) -> None:
        """What ``keep`` would compute, by whoever solved the layer and has it at hand."""
        self._outputs[scheme] = output

    def keep(self, scheme: Scheme, solved: SolvedLayer) -> None:
        """Tells the stream what this scheme's next layer will be fed by. Call once per scheme."""
        hidden = self._prefixes[scheme]
        if scheme in self._outputs:
            hidden.take(self._outputs.pop(scheme))
        else:
            run_quantized(self, hidden, scheme, solved)
        self._kept.add(scheme)

    def require_kept(self) -> None:
        """Raises: UsageError if a scheme was neither solved nor restored."""
        for scheme in self._prefixes:
            if scheme not in self._kept:
                raise UsageError(f"Layer {self.index} was not kept for {scheme.name}.")


def short_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` to ``mlp.up_proj``."""
    return name.split(".", 3)[3].removesuffix(".weight")


def stream_layers(
    checkpoint: Checkpoint,
    config: Qwen3Config,
    rows: Sequence[Sequence[int]],
    schemes: Sequence[Scheme] = (),
    options: StreamOptions = StreamOptions(),
    *,
    float_stride: int | None = 1,
    importance: bool = False,
    start: int = 0,
    restore: Restore | None = None,
    progress: ProgressFn = silent,
) -> Generator[StreamedLayer, None, None]:
    """Yields decoder layers ``start ..`` in order; close it where it is not run to its end.

    Each scheme's layers see the activations that its own quantized prefix makes, so between two
    layers the caller solves every scheme and hands the result to ``StreamedLayer.keep``::

        for layer in stream_layers(checkpoint, config, rows, schemes):
            for scheme in schemes:
                solved = solve_layer(layer, scheme)
                journal.write(layer.index, scheme, solved)
                layer.keep(scheme, solved)

    To resume at layer k, pass ``start=k`` and a ``restore`` that reads layers ``0 .. k-1`` back
    from the journal: they are run forward again, and layer k is then bit for bit what it would
    have been.

    Args:
        rows: calibration tokens, rows of one length.
        schemes: uniform schemes to be solved (``Scheme.is_uniform``); others need no stream.
        float_stride: the float model runs on every n-th portion of rows, 1 or ``SAMPLE_STRIDE``;
            None: not at all. See ``SolveOptions.float_stride``.
        importance: collect ``moments``, of all rows that the float model runs on.
        progress: told layers done and in all.

    Raises:
        UsageError: rows are empty, differ in length or hold a token outside the vocabulary.
        CheckpointError: a weight is missing or not finite.
        DiskError: activations do not fit on disk.
    """
    tokens = _token_tensor(rows, config.vocab_size)
    arithmetic = arithmetic_for(config, options.devices[0], tokens.shape[1])
    rope = rope_table(config, tokens.shape[1], arithmetic.device)
    count, length = tokens.shape
    with (
        arithmetic.team,
        ActivationStore(count, length, options.memory_bytes, options.work_folder) as store,
    ):
        hidden = store.new(config.hidden_size) if float_stride else None
        prefixes = {scheme: store.new(config.hidden_size) for scheme in schemes}
        for part in arithmetic.portions(store):
            first = embedded(checkpoint, tokens[part])
            for activations in (*([hidden] if hidden else []), *prefixes.values()):
                activations.write(part, first)
        checkpoint.release(EMBEDDING)
        for index in range(config.num_hidden_layers):
            progress(index, config.num_hidden_layers, "layers")
            weights = LayerWeights(checkpoint, config, index)
            layer = StreamedLayer(
                index, config, weights, store, arithmetic, rope, options.devices, prefixes
            )
            if index < start:
                _run_again(layer, hidden, float_stride, schemes, restore)
                continue
            with _float_pass(
                layer, hidden, float_stride, record=bool(schemes), importance=importance
            ):
                yield layer
                layer.require_kept()
        progress(config.num_hidden_layers, config.num_hidden_layers, "layers")


def _run_again(
    layer: StreamedLayer,
    hidden: Activations | None,
    float_stride: int | None,
    schemes: Sequence[Scheme],
    restore: Restore | None,
) -> None:
    """Takes all activations through a layer that was solved before."""
    if hidden is not None and float_stride is not None:
        run_float(layer, hidden, float_stride)
    for scheme in schemes:
        assert restore is not None
        layer.keep(scheme, restore(layer.index, scheme))


def run_float(layer: StreamedLayer, hidden: Activations, stride: int = 1) -> None:
    """Replaces ``hidden`` by the float layer's output, in every ``stride``-th portion."""
    arithmetic = layer.arithmetic
    weights = layer.prepared_weights()

    def run(part: slice) -> None:
        x = hidden.read(part, arithmetic.device)
        hidden.write(part, decoder_layer(x, weights, layer.config, layer.rope))

    arithmetic.team.map(run, arithmetic.portions(layer.store, stride))


def run_quantized(
    layer: StreamedLayer, hidden: Activations, scheme: Scheme, solved: SolvedLayer
) -> None:
    """Replaces ``hidden`` by the quantized layer's output."""
    arithmetic = layer.arithmetic
    weights, linear = arithmetic.quantized(layer, scheme, solved.linears, solved.changed)

    def run(part: slice) -> None:
        x = hidden.read(part, arithmetic.device)
        hidden.write(part, decoder_layer(x, weights, layer.config, layer.rope, linear))

    arithmetic.each(layer.store, run)


def _float_pass(
    layer: StreamedLayer,
    hidden: Activations | None,
    stride: int | None,
    *,
    record: bool,
    importance: bool,
) -> AbstractContextManager[object]:
    """Within, the layer has what the float model makes of it, if that runs at all."""
    if hidden is None or stride is None:
        return nullcontext()
    return _FloatPass(layer, hidden, stride, record=record, importance=importance)


class _FloatPass:
    """Runs one layer of the float model on entering, watching its linears' inputs; after a body
    that was run to its end, the layer's output is the next one's input."""

    def __init__(
        self,
        layer: StreamedLayer,
        hidden: Activations,
        stride: int,
        *,
        record: bool,
        importance: bool,
    ) -> None:
        self._layer = layer
        self._hidden = hidden
        self._stride = stride
        self._importance = importance
        config, store = layer.config, layer.store
        self._next = store.new(config.hidden_size)
        self._room: list[Activations] = []
        if record:
            dtype = layer.arithmetic.dtype
            mixed = store.new(config.q_size, dtype)
            middle = store.new(config.hidden_size)
            inner = None
            if not config.is_moe_layer(layer.index):
                inner = store.new(config.intermediate_size, dtype)
            layer.inputs = LayerInputs(hidden, mixed, middle, inner)
            self._room = [mixed, middle, *([inner] if inner else [])]

    def __enter__(self) -> None:
        try:
            self._run()
        except BaseException:
            self._free()
            raise

    def __exit__(self, failure: object, *_: object) -> None:
        try:
            if failure is None:
                self._hidden.take(self._next)
        finally:
            self._free()

    def _run(self) -> None:
        """Fills the layer's ``inputs``, ``moments`` and ``sampled_moments``."""
        layer, config, inputs = self._layer, self._layer.config, self._layer.inputs
        weights = layer.prepared_weights()
        portions = list(layer.arithmetic.portions(layer.store, self._stride))
        sampled = portions[:: SAMPLE_STRIDE // self._stride]
        watches = {
            part.start: MomentWatch(weights) for part in (portions if self._importance else sampled)
        }

        def run(part: slice) -> None:
            watch = watches.get(part.start) or plain_linear(weights)
            hidden = self._hidden.read(part, layer.arithmetic.device)
            mixed = attention(hidden, weights, config, layer.rope, watch)
            middle = hidden + watch(O_PROJ, mixed)
            if inputs is not None:
                inputs.mixed.write(part, mixed)
                inputs.middle.write(part, middle)
            if inputs is not None and inputs.inner is not None:
                x = rms_norm(middle, weights["post_attention_layernorm"], config.rms_norm_eps)
                inner = gated(x.to(layer.arithmetic.dtype), *GATE_UP, watch)
                inputs.inner.write(part, inner)
                self._next.write(part, middle + watch(DOWN, inner))
            else:
                self._next.write(part, middle + mlp(middle, weights, config, watch))

        layer.arithmetic.team.map(run, portions)
        if self._importance:
            layer.moments = self._moments(list(watches.values()))
        layer.sampled_moments = self._moments([watches[part.start] for part in sampled])

    def _moments(self, watches: Sequence[MomentWatch]) -> dict[str, InputMoments]:
        """Of every linear, what several portions' watches saw together."""
        watch = merged(watches)
        return {
            spec.name: watch.moments(short, spec.shape[1])
            for short, spec in self._layer.specs.items()
            if spec.is_linear
        }

    def _free(self) -> None:
        for activations in self._room:
            activations.free()


def _token_tensor(rows: Sequence[Sequence[int]], vocab_size: int) -> torch.Tensor:
    lengths = {len(row) for row in rows}
    if not rows or lengths == {0}:
        raise UsageError("There are no calibration tokens.", "Give text with --calibration.")
    if len(lengths) > 1:
        raise UsageError(f"Calibration rows have {len(lengths)} different lengths.")
    tokens = torch.tensor(rows, dtype=torch.long)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise UsageError(
            f"Calibration holds token {high if high >= vocab_size else low}, but the model has "
            f"{vocab_size} tokens.",
            "Tokenize it with this model's own tokenizer.",
        )
    return tokens
