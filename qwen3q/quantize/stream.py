"""Decoder layers one at a time, with their float weights and the inputs calibration gives them.

Memory holds one layer. Activations of all calibration rows lie in host memory, or in files under
a work folder when they would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3q.models.config import Qwen3Config
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    import torch

    from qwen3q.calibrate.statistics import InputMoments
    from qwen3q.checkpoint.reader import Checkpoint
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


class StreamedLayer:
    """One decoder layer on its way through.

    Attributes:
        index: which decoder layer.
        weights: its float32 tensors by checkpoint name (``model.layers.3.mlp.up_proj.weight``).
        moments: mean squares and token counts of every linear's input under the float model, by
            checkpoint name: the GGUF importance matrix.
    """

    index: int
    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, InputMoments]

    def keep(self, scheme: Scheme, solved: SolvedLayer) -> None:
        """Tells the stream what this scheme's next layer will be fed by. Call once per scheme."""


def stream_layers(
    checkpoint: Checkpoint,
    config: Qwen3Config,
    rows: Sequence[Sequence[int]],
    schemes: Sequence[Scheme] = (),
    options: StreamOptions = StreamOptions(),  # noqa: B008
    *,
    start: int = 0,
    restore: Restore | None = None,
    progress: ProgressFn = silent,
) -> Iterator[StreamedLayer]:
    """Yields decoder layers ``start ..`` in order.

    Each scheme's layers see the activations that its own quantized prefix makes, so between two
    layers the caller solves every scheme and hands the result to ``StreamedLayer.keep``::

        for layer in stream_layers(checkpoint, config, rows, schemes):
            for scheme in schemes:
                solved = solve_layer(layer, scheme)
                journal.write(layer.index, scheme, solved)
                layer.keep(scheme, solved)

    To resume at layer k, pass ``start=k`` and a ``restore`` that reads layers ``0 .. k-1`` back
    from the journal: they are run forward again, and layer k is then bit for bit what it would
    have been. With no schemes only ``moments`` are collected.

    Args:
        rows: calibration tokens, rows of one length.
        schemes: uniform schemes to be solved (``Scheme.is_uniform``); others need no stream.

    Raises:
        UsageError: rows are empty, differ in length or hold a token outside the vocabulary.
        CheckpointError: a weight is missing or not finite.
        DiskError: activations do not fit on disk.
    """
    raise NotImplementedError
