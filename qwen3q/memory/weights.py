"""Weights by place: which bytes sit in which layer, from a plan or from a file's header."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from qwen3q.models.catalog import Release
from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import parameter_count
from qwen3q.plan.gguf_types import FILE_TYPES, GGUF_PREFIX

if TYPE_CHECKING:
    from qwen3q.plan.plan import Plan

FOLDER_FORMATS = (
    "bf16", "fp16", "fp8", "nvfp4", "gptq:int8", "gptq:int4", "awq:int4", "int8", "int4",
    "bnb:int8", "bnb:nf4",
)  # fmt: skip
GGUF_FORMATS = tuple(GGUF_PREFIX + name for name in FILE_TYPES if name != "F32")
FORMATS = FOLDER_FORMATS + GGUF_FORMATS
"""Every quantization that estimates list."""

TABLE = "weights.json"
"""Sums of every catalog model's plans, made by ``python -m qwen3q.memory.tabulate``."""

_LAYER = re.compile(r"(?:blk|(?:model\.)?layers)\.(\d+)\.(.+)")
_PLACES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
    "ffn_gate_exps": "gate", "ffn_up_exps": "up", "ffn_down_exps": "down",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Bytes of one decoder layer; ``small`` holds norms and the router.

    Attributes:
        index: the part of the linears that is GPTQ's ``g_idx``, which some engines drop.
    """

    q: int = 0
    k: int = 0
    v: int = 0
    o: int = 0
    gate: int = 0
    up: int = 0
    down: int = 0
    small: int = 0
    index: int = 0

    @property
    def ffn(self) -> int:
        """The feed-forward linears: of a MoE layer, its experts."""
        return self.gate + self.up + self.down

    @property
    def attention(self) -> int:
        return self.q + self.k + self.v + self.o

    @property
    def total(self) -> int:
        return self.q + self.k + self.v + self.o + self.gate + self.up + self.down + self.small


@dataclass(frozen=True, slots=True)
class Weights:
    """One quantization of one model, in bytes.

    Attributes:
        format: ``gguf:Q4_K_M``, ``gptq:int4``, ...; of a local file what it says of itself.
        head: the output matrix, 0 where it is the embedding.
        file_bytes: on disk, with headers and metadata.
        parameters: of the float model, a tied embedding counted once.
        linear_parameters: of the decoder's linears, which quantization is for.
    """

    format: str
    layers: tuple[LayerWeights, ...]
    embedding: int
    head: int
    final_norm: int
    file_bytes: int
    parameters: int
    linear_parameters: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.final_norm + sum(x.total for x in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of all tensors: what a file of this size holds each parameter in."""
        return self.total * 8 / self.parameters

    @property
    def linear_bits(self) -> float:
        """Bits per weight of the decoder's linears, scales and zeros counted."""
        nbytes = sum(layer.attention + layer.ffn for layer in self.layers)
        return nbytes * 8 / self.linear_parameters


def weights_of_plan(plan: Plan, config: Qwen3Config) -> Weights:
    """Sums a plan by place."""
    sizes = ((tensor.name, tensor.nbytes) for tensor in plan.tensors)
    return sum_tensors(plan.format, sizes, config, plan.file_bytes, plan.parameters)


def sum_tensors(
    fmt: str,
    sizes: Iterable[tuple[str, int]],
    config: Qwen3Config,
    file_bytes: int,
    parameters: int | None = None,
) -> Weights:
    """Sums named tensors by place, in GGUF's or in the checkpoint's names."""
    layers: list[dict[str, int]] = [{} for _ in range(config.num_hidden_layers)]
    outside = {"embedding": 0, "head": 0, "final_norm": 0}
    for name, nbytes in sizes:
        match = _LAYER.match(name)
        if match is None or int(match[1]) >= len(layers):
            place = _outside_layers(name)
            outside[place] += nbytes
            continue
        layer = layers[int(match[1])]
        parts = match[2].split(".")
        place = next((_PLACES[part] for part in parts if part in _PLACES), "small")
        layer[place] = layer.get(place, 0) + nbytes
        if parts[-1] == "g_idx":
            layer["index"] = layer.get("index", 0) + nbytes
    return Weights(
        format=fmt,
        layers=tuple(LayerWeights(**layer) for layer in layers),
        file_bytes=file_bytes,
        parameters=parameter_count(config) if parameters is None else parameters,
        linear_parameters=linear_parameters(config),
        **outside,
    )


def linear_parameters(config: Qwen3Config) -> int:
    """Parameters of the decoder's linears, from the config's shapes."""
    attention = config.hidden_size * (2 * config.q_size + 2 * config.kv_size)
    total = 0
    for layer in range(config.num_hidden_layers):
        if config.is_moe_layer(layer):
            inner = config.num_experts * config.moe_intermediate_size
        else:
            inner = config.intermediate_size
        total += attention + 3 * config.hidden_size * inner
    return total


def release_weights(release: Release, fmt: str) -> Weights:
    """The weights of a catalog model in one of ``FORMATS``, without building its plan.

    The figures are the plan's own sums, kept in a table, since the plan of a large MoE has a
    hundred thousand tensors. A format outside the table is planned.
    """
    table = _table()
    shape = table["shapes"].get(release.name)
    entry = None if shape is None else table["weights"][shape].get(fmt)
    if entry is None:
        return planned_weights(release.title, release.config, fmt)
    kinds = [LayerWeights(*kind) for kind in entry["kinds"]]
    return Weights(
        format=fmt,
        layers=tuple(kinds[int(i)] for i in entry["layers"].split()),
        embedding=entry["embedding"],
        head=entry["head"],
        final_norm=entry["final_norm"],
        file_bytes=entry["file_bytes"],
        parameters=release.parameters,
        linear_parameters=entry["linear_parameters"],
    )


def planned_weights(model: str, config: Qwen3Config, fmt: str) -> Weights:
    """The weights of any config in any format, from its plan.

    Raises:
        UsageError: no such format, or one that this model does not fit.
    """
    from qwen3q.plan.targets import parse_target, plan_target

    return weights_of_plan(plan_target(model, config, parse_target(fmt)), config)


def table_entry(weights: Weights) -> dict[str, Any]:
    """``weights`` as the table holds it: each kind of layer once, and the kind of every layer."""
    kinds = list(dict.fromkeys(weights.layers))
    fields = LayerWeights.__slots__
    return {
        "embedding": weights.embedding,
        "head": weights.head,
        "final_norm": weights.final_norm,
        "file_bytes": weights.file_bytes,
        "linear_parameters": weights.linear_parameters,
        "kinds": [[getattr(kind, field) for field in fields] for kind in kinds],
        "layers": " ".join(str(kinds.index(layer)) for layer in weights.layers),
    }


@cache
def _table() -> Mapping[str, Any]:
    path = resources.files("qwen3q.data") / TABLE
    if not path.is_file():
        return {"shapes": {}, "weights": {}}
    table: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def _outside_layers(name: str) -> str:
    if "embd" in name or "embed_tokens" in name:
        return "embedding"
    return "head" if name.startswith(("output.", "lm_head.")) else "final_norm"
