"""Any format in torch: float32 arithmetic on dequantized weights, one decoder layer at a time.

Every layer is read and dequantized once and run over all chunks before the next, so memory holds
one layer and the hidden states, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.devices import best_device
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.backends import BackendOptions, LogitRows
from qwen3q.evaluate.input_rounding import Rounding
from qwen3q.evaluate.residence import PackedLayer, Residence, free_on, residence
from qwen3q.evaluate.sampling import FinishedFn, GrownFn, Prompt, ignore, unwatched
from qwen3q.evaluate.side_by_side import continue_side_by_side, fitting_slots
from qwen3q.evaluate.torch_generate import CachedModel, TorchSlots
from qwen3q.evaluate.weights import WeightSource, open_weights
from qwen3q.models.decoder import Linear, Weights, decoder_layer, rms_norm, rope_table
from qwen3q.models.products import product
from qwen3q.models.tensors import layer_tensors
from qwen3q.models.yarn import with_yarn
from qwen3q.progress import ProgressFn, silent
from qwen3q.threads import model_threads

_BATCH_TOKENS = 2048
"""Tokens run through a layer at a time; attention scores and MLP rows are made for so many."""

_LOGIT_BYTES = 128 << 20
"""About how much one block of logits takes."""

_SIDE_BY_SIDE = 16
"""Answers made at a time. More gain little: a core multiplies as fast as its memory is read."""


class TorchBackend(Closing):
    """A model whose weights come from any artefact."""

    def __init__(self, artefact: Artefact, options: BackendOptions) -> None:
        self._artefact = artefact
        self._source = open_weights(artefact)
        self.config = self._source.config
        if options.yarn is not None:
            self.config = with_yarn(self.config, options.yarn, artefact.name)
        self.device = torch.device(options.device or best_device())
        self._cached: CachedModel | None = None
        self._slots: TorchSlots | None = None
        threads = model_threads(options.threads, self.config.hidden_size)
        torch.set_num_threads(threads)
        self.facts: Mapping[str, Any] = {
            "engine": "torch",
            "version": torch.__version__,
            "device": str(self.device),
            "threads": threads,
            "arithmetic": "float32, inputs rounded as the format is served",
        }
        if options.yarn is not None:
            self.facts = {**self.facts, "yarn": options.yarn}

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def logits(
        self, chunks: NDArray[np.int32], first: int, progress: ProgressFn = silent
    ) -> Iterator[LogitRows]:
        with torch.inference_mode():
            embedding = self._source.weight("model.embed_tokens.weight")
            hidden = F.embedding(torch.from_numpy(chunks.astype(np.int64)), embedding)
            head = embedding if self.config.tie_word_embeddings else None
            del embedding
            scored = self._hidden(hidden, slice(first, chunks.shape[1] - 1), progress).flatten(0, 1)
            name = head_name(self._source)
            head = (self._source.weight(name) if head is None else head).to(self.device)
            rounding = self._source.input_rounding(name)
            norm = self._weight("model.norm.weight")
            step = max(1, _LOGIT_BYTES // (4 * self.vocab_size))
            # one block for all: products take a third longer in memory that is fresh each time
            block = head.new_empty(min(step, len(scored)), self.vocab_size)
            for start in range(0, len(scored), step):
                x = rms_norm(scored[start : start + step], norm, self._source.config.rms_norm_eps)
                x = rounding(x) if rounding else x
                logits = product(x, head, out=block[: len(x)])
                yield LogitRows(start, logits.cpu().numpy())

    def _hidden(self, hidden: torch.Tensor, wanted: slice, progress: ProgressFn) -> torch.Tensor:
        """The last layer's output at the ``wanted`` positions, float32.

        Args:
            hidden: embedded tokens, ``[chunks, context, hidden_size]``; overwritten.
        """
        config = self.config
        count, context = hidden.shape[:2]
        rope = rope_table(config, context, self.device)
        rows = max(1, _BATCH_TOKENS // context)
        for layer in range(config.num_hidden_layers):
            weights, linear = self.layer(layer)
            made = wanted if layer == config.num_hidden_layers - 1 else slice(None)
            for start in range(0, count, rows):
                part = hidden[start : start + rows].to(self.device)
                out = decoder_layer(part, weights, config, rope, linear, made)
                hidden[start : start + rows, made] = out
                done = layer * count + min(start + rows, count)
                progress(done, config.num_hidden_layers * count, "logits")
        return hidden[:, wanted].to(self.device)

    def layer(self, index: int) -> tuple[Weights, Linear]:
        """One decoder layer's float32 weights by short name, and how its linears run."""
        names = self._layer_names(index)
        return self._running({short: self._weight(name) for short, name in names.items()}, names)

    def _packed_layer(self, index: int) -> tuple[Weights, Linear]:
        """The same, with weights that are unpacked when they are used."""
        names = self._layer_names(index)
        packed = {short: self._source.packed(name) for short, name in names.items()}
        return self._running(PackedLayer(packed, self.device), names)

    def _layer_names(self, index: int) -> dict[str, str]:
        """Checkpoint names by short name."""
        prefix = f"model.layers.{index}."
        return {
            spec.name.removeprefix(prefix).removesuffix(".weight"): spec.name
            for spec in layer_tensors(self._source.config, index)
        }

    def _running(self, weights: Weights, names: Mapping[str, str]) -> tuple[Weights, Linear]:
        roundings: dict[str, Rounding] = {}
        for short, name in names.items():
            rounding = self._source.input_rounding(name)
            if rounding is not None:
                roundings[short] = rounding

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            return product(roundings[name](x) if name in roundings else x, weights[name])

        return weights, linear

    def _weight(self, name: str) -> torch.Tensor:
        return self._source.weight(name).to(self.device)

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        stop_tokens: frozenset[int],
        finished: FinishedFn = ignore,
        grown: GrownFn = unwatched,
    ) -> list[list[int]]:
        longest = max((len(prompt.tokens) for prompt in prompts), default=0) + max_tokens
        model = self.cached_model()
        nbytes = longest * model.kv_bytes_per_token
        count = fitting_slots(nbytes, free_on(self.device), min(len(prompts), _SIDE_BY_SIDE))
        if self._slots is None or self._slots.count != count:
            self._slots = TorchSlots(model, count)
        return continue_side_by_side(self._slots, prompts, max_tokens, stop_tokens, finished, grown)

    def cached_model(self) -> CachedModel:
        """The whole model in memory, for decoding; loaded once.

        Raises:
            OutOfMemoryError: it does not fit, even as it is stored.
        """
        if self._cached is None:
            config = self.config
            packed = residence(self._artefact, self.device) is Residence.PACKED
            layer = self._packed_layer if packed else self.layer
            embedding = self._table("model.embed_tokens.weight", packed)
            head = head_name(self._source)
            self._cached = CachedModel(
                config,
                embedding,
                [layer(index) for index in range(config.num_hidden_layers)],
                self._weight("model.norm.weight"),
                embedding if config.tie_word_embeddings else self._table(head, packed),
                self._source.input_rounding(head),
            )
        return self._cached

    def _table(self, name: str, packed: bool) -> torch.Tensor:
        """The embedding or the head; where memory is short, in the 16 bits it may be stored in."""
        if packed:
            parts = self._source.packed(name).parts
            if set(parts) == {"weight"} and parts["weight"].is_floating_point():
                return parts["weight"].to(self.device)
        return self._weight(name)

    def close(self) -> None:
        self._cached = self._slots = None


def head_name(source: WeightSource) -> str:
    """The tensor that makes logits: the embedding where they are tied."""
    tied = source.config.tie_word_embeddings
    return "model.embed_tokens.weight" if tied else "lm_head.weight"
