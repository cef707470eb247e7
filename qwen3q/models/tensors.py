"""Every tensor of a Qwen3 checkpoint: name, shape, role, layer and expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import prod

from qwen3q.errors import REFETCH_MODEL, ModelError
from qwen3q.models.config import Qwen3Config

_REFETCH = "Config and weights may be of different models; fetch the model again."
_QUANTIZED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax", ".SCB")
"""How tensors end that only quantized checkpoints hold, in the layouts that are common."""


class Role(StrEnum):
    """What a tensor does. Values are the module names inside the checkpoint."""

    EMBED = "embed_tokens"
    INPUT_NORM = "input_layernorm"
    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    O = "o_proj"  # noqa: E741
    POST_NORM = "post_attention_layernorm"
    ROUTER = "gate"
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"
    FINAL_NORM = "norm"
    LM_HEAD = "lm_head"


LINEAR_ROLES = frozenset({Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the checkpoint. Linear shapes are ``[out, in]``."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None
    expert: int | None = None

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """A decoder linear, what quantization is for: never router, norms or embeddings."""
        return self.role in LINEAR_ROLES


@lru_cache(maxsize=4)
def model_tensors(config: Qwen3Config) -> tuple[TensorSpec, ...]:
    """All tensors of a checkpoint with this config, in forward order.

    Remembered: a plan asks many times, and 94 layers of 128 experts are 36,000 tensors.
    """
    out = [
        TensorSpec("model.embed_tokens.weight", (config.vocab_size, config.hidden_size), Role.EMBED)
    ]
    for layer in range(config.num_hidden_layers):
        out.extend(layer_tensors(config, layer))
    out.append(TensorSpec("model.norm.weight", (config.hidden_size,), Role.FINAL_NORM))
    if not config.tie_word_embeddings:
        out.append(
            TensorSpec("lm_head.weight", (config.vocab_size, config.hidden_size), Role.LM_HEAD)
        )
    return tuple(out)


def layer_tensors(config: Qwen3Config, layer: int) -> Iterator[TensorSpec]:
    """The tensors of decoder layer ``layer``, in forward order."""
    hidden, q, kv, head = config.hidden_size, config.q_size, config.kv_size, config.head_dim
    prefix = f"model.layers.{layer}"

    def spec(module: str, role: Role, *shape: int, expert: int | None = None) -> TensorSpec:
        return TensorSpec(f"{prefix}.{module}{role}.weight", shape, role, layer, expert)

    yield spec("", Role.INPUT_NORM, hidden)
    yield spec("self_attn.", Role.Q, q, hidden)
    yield spec("self_attn.", Role.K, kv, hidden)
    yield spec("self_attn.", Role.V, kv, hidden)
    yield spec("self_attn.", Role.Q_NORM, head)
    yield spec("self_attn.", Role.K_NORM, head)
    yield spec("self_attn.", Role.O, hidden, q)
    yield spec("", Role.POST_NORM, hidden)
    if not config.is_moe_layer(layer):
        inner = config.intermediate_size
        yield spec("mlp.", Role.GATE, inner, hidden)
        yield spec("mlp.", Role.UP, inner, hidden)
        yield spec("mlp.", Role.DOWN, hidden, inner)
        return
    inner = config.moe_intermediate_size
    yield spec("mlp.", Role.ROUTER, config.num_experts, hidden)
    for expert in range(config.num_experts):
        module = f"mlp.experts.{expert}."
        yield spec(module, Role.GATE, inner, hidden, expert=expert)
        yield spec(module, Role.UP, inner, hidden, expert=expert)
        yield spec(module, Role.DOWN, hidden, inner, expert=expert)


def parameter_count(config: Qwen3Config) -> int:
    """Parameters of the model; a tied embedding counts once."""
    return sum(spec.numel for spec in model_tensors(config))


def active_parameter_count(config: Qwen3Config) -> int:
    """Parameters one token passes through: of the experts, only the routed ones."""
    return sum(
        spec.numel
        for spec in model_tensors(config)
        if spec.expert is None or spec.expert < config.num_experts_per_tok
    )


def check_tensors(
    config: Qwen3Config, shapes: Mapping[str, tuple[int, ...]], where: str
) -> tuple[TensorSpec, ...]:
    """Holds a checkpoint's tensors against its config, and returns the config's.

    A tied checkpoint may carry a copy of the embedding as ``lm_head.weight``; it is ignored.

    Args:
        shapes: shape of every tensor in the checkpoint, by name.
        where: the checkpoint, for the message.

    Raises:
        ModelError: the checkpoint is quantized, or a tensor is missing, has another shape or is
            unknown.
    """
    packed = next((name for name in shapes if name.endswith(_QUANTIZED)), None)
    if packed is not None:
        raise ModelError(
            f"{where} is quantized already: it holds {packed}.",
            "Give the float model that it was made from.",
        )
    specs = model_tensors(config)
    for spec in specs:
        if spec.name not in shapes:
            raise ModelError(
                f"{where} has no tensor {spec.name}, which its config asks for.",
                REFETCH_MODEL,
            )
        if tuple(shapes[spec.name]) != spec.shape:
            raise ModelError(
                f"{where}: {spec.name} has shape {list(shapes[spec.name])}, "
                f"but its config gives {list(spec.shape)}.",
                _REFETCH,
            )
    known = {spec.name for spec in specs}
    if config.tie_word_embeddings:
        known.add("lm_head.weight")
    extra = sorted(shapes.keys() - known)
    if extra:
        raise ModelError(
            f"{where} holds {extra[0]}, which is no tensor of a {config.model_type} "
            f"with this config ({len(extra)} such).",
            _REFETCH,
        )
    return specs
