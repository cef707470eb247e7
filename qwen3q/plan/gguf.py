"""The GGUF plan: each tensor's llama.cpp name, type and bytes, from a config alone."""

from __future__ import annotations

from collections import defaultdict

from qwen3q.models.config import Qwen3Config
from qwen3q.models.tensors import Role, TensorSpec, model_tensors
from qwen3q.plan.gguf_mix import MixContext, choose_type, requires_imatrix
from qwen3q.plan.gguf_types import GGML_TYPES, FileType
from qwen3q.plan.plan import Plan, PlannedTensor

ALIGNMENT = 32

_GLOBAL_NAMES = {
    Role.EMBED: "token_embd",
    Role.FINAL_NORM: "output_norm",
    Role.LM_HEAD: "output",
}
_LAYER_NAMES = {
    Role.INPUT_NORM: "attn_norm",
    Role.Q: "attn_q",
    Role.K: "attn_k",
    Role.V: "attn_v",
    Role.Q_NORM: "attn_q_norm",
    Role.K_NORM: "attn_k_norm",
    Role.O: "attn_output",
    Role.POST_NORM: "ffn_norm",
    Role.ROUTER: "ffn_gate_inp",
    Role.GATE: "ffn_gate",
    Role.UP: "ffn_up",
    Role.DOWN: "ffn_down",
}


def gguf_name(spec: TensorSpec) -> str:
    """llama.cpp's name for a checkpoint tensor; all experts of one kind share a name."""
    if spec.layer is None:
        return f"{_GLOBAL_NAMES[spec.role]}.weight"
    suffix = "_exps" if spec.expert is not None else ""
    return f"blk.{spec.layer}.{_LAYER_NAMES[spec.role]}{suffix}.weight"


def plan_gguf(
    model: str,
    config: Qwen3Config,
    file_type: FileType,
    *,
    has_imatrix: bool = False,
    metadata_bytes: int | None = None,
) -> Plan:
    """Plans a GGUF file of ``config`` in llama.cpp's mix ``file_type``.

    Args:
        model: the model's name, for people.
        has_imatrix: plan for weights that come with an importance matrix (changes a few types).
        metadata_bytes: exact bytes of the key-value section; estimated from the vocabulary if None.
    """
    context = MixContext(
        file_type=file_type,
        n_layers=config.num_hidden_layers,
        n_experts=config.num_experts,
        gqa=config.num_attention_heads // config.num_key_value_heads,
        tied=config.tie_word_embeddings,
        has_imatrix=has_imatrix,
    )
    groups: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in model_tensors(config):
        groups[gguf_name(spec)].append(spec)

    tensors: list[PlannedTensor] = []
    waiting: list[str] = []
    for name, specs in sorted(groups.items(), key=_file_order):
        spec = specs[0]
        shape = spec.shape if spec.expert is None else (len(specs), *spec.shape)
        chosen = choose_type(context, spec.role, spec.layer, shape[-1], len(shape) == 3)
        rows = sum(s.numel for s in specs) // shape[-1]
        tensors.append(
            PlannedTensor(
                name, chosen.name, shape, rows * chosen.row_bytes(shape[-1]), tuple(specs)
            )
        )
        if not has_imatrix and requires_imatrix(context, spec.role, chosen):
            waiting.append(name)

    exact = metadata_bytes is not None
    head = 24 + (metadata_bytes if metadata_bytes is not None else _typical_metadata(config))
    infos = sum(tensor_info_bytes(tensor) for tensor in tensors)
    data = sum(padded(tensor.nbytes) for tensor in tensors)
    return Plan(
        model=model,
        format=f"gguf:{file_type.name}",
        tensors=tuple(tensors),
        parameters=sum(tensor.numel for tensor in tensors),
        overhead_bytes=padded(head + infos) + data - sum(tensor.nbytes for tensor in tensors),
        overhead_exact=exact,
        needs_imatrix=tuple(waiting),
    )


def padded(nbytes: int) -> int:
    """``nbytes`` rounded up to GGUF's alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def tensor_info_bytes(tensor: PlannedTensor) -> int:
    """Bytes of one entry of the tensor table: name, dimensions, type, offset."""
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def tensor_type(tensor: PlannedTensor) -> int:
    """GGML's number for the tensor's type."""
    return GGML_TYPES[tensor.type].id


def _file_order(item: tuple[str, list[TensorSpec]]) -> tuple[int, str]:
    """llama.cpp's order: tensors outside layers first, then by layer and name."""
    name, specs = item
    return (-1 if specs[0].layer is None else specs[0].layer, name)


def _typical_metadata(config: Qwen3Config) -> int:
    """Bytes of the key-value section of published Qwen3 files: tokenizer, merges, template.

    39.1 bytes per vocabulary entry in Qwen's and Unsloth's files (151,936 entries, 5.93 MB).
    """
    return round(config.vocab_size * 39.1)
