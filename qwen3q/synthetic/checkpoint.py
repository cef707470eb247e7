"""Writes a random-weight checkpoint folder in the official layout, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.shards import (
    DTYPES,
    INDEX_NAME,
    MAX_SHARD_BYTES,
    Shard,
    index_json,
    lay_out_shards,
)
from qwen3q.errors import DiskError, UsageError
from qwen3q.models.config import Qwen3Config, parse_config, read_config
from qwen3q.models.tensors import TensorSpec, model_tensors
from qwen3q.plan.plan import PlannedTensor
from qwen3q.progress import ProgressFn, silent
from qwen3q.synthetic.weights import encode, random_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
STORED_DTYPES = ("bfloat16", "float16", "float32")


def reshape_config(config: Qwen3Config, **sizes: int | None) -> Qwen3Config:
    """``config`` with the sizes that are not None, named as in ``config.json``.

    Raises:
        UsageError: expert sizes for a dense model.
        ModelError: the sizes do not fit each other.
    """
    given = {name: size for name, size in sizes.items() if size is not None}
    expert_sizes = [name for name in given if "expert" in name or name.startswith("moe")]
    if expert_sizes and not config.is_moe:
        raise UsageError(
            f"{expert_sizes[0]} is for a mixture of experts, but this model is dense.",
            "Start from qwen3-30b-a3b, for example.",
        )
    if "num_experts" in given:
        given.setdefault(
            "num_experts_per_tok", min(config.num_experts_per_tok, given["num_experts"])
        )
    changed = replace(config, **given)  # type: ignore[arg-type]
    return parse_config(config_json(changed), where="the shape asked for")


def config_json(config: Qwen3Config) -> dict[str, Any]:
    """``config.json`` in transformers' 4.x keys, which 5.x reads too."""
    eos = config.eos_token_ids
    raw: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if config.is_moe else "Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos) or None,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": config.model_type,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    if config.yarn:
        raw["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_max_position_embeddings,
        }
    if config.is_moe:
        raw |= {
            "decoder_sparse_step": config.decoder_sparse_step,
            "mlp_only_layers": list(config.mlp_only_layers),
            "moe_intermediate_size": config.moe_intermediate_size,
            "norm_topk_prob": config.norm_topk_prob,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }
    return raw


def write_checkpoint(
    config: Qwen3Config,
    folder: Path,
    *,
    dtype: str = "bfloat16",
    shards: int | None = None,
    seed: int = 0,
    progress: ProgressFn = silent,
) -> list[Path]:
    """Writes a random model of this shape with the demo model's tokenizer.

    The folder appears when it is whole. Memory stays at a few MB whatever the model's size.

    Args:
        folder: must not exist, or be empty.
        dtype: how weights are stored, one of ``STORED_DTYPES``.
        shards: cut into about equal files, this many at most; by default 5 GB each.
        progress: told bytes written.

    Returns:
        The safetensors files.

    Raises:
        UsageError: the folder is taken, or a dtype or shard number that can't be.
        DiskError: not enough room.
    """
    if dtype not in STORED_DTYPES:
        raise UsageError(
            f"Weights can't be stored as {dtype!r}.", f"Known: {', '.join(STORED_DTYPES)}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already.", "Give another folder.")
    config = replace(_with_demo_tokens(config), dtype=dtype)
    specs = model_tensors(config)
    layout = _cut(specs, dtype, shards)
    _check_room(folder, sum(shard.nbytes for shard in layout))
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in TOKENIZER_FILES:
            shutil.copyfile(_demo() / name, partial / name)
        (partial / "config.json").write_text(json.dumps(config_json(config), indent=2) + "\n")
        if len(layout) > 1:
            (partial / INDEX_NAME).write_bytes(index_json(layout))
        _write_shards(config, specs, layout, dtype, seed, partial, progress)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [folder / shard.filename for shard in layout]


def _write_shards(
    config: Qwen3Config,
    specs: Sequence[TensorSpec],
    layout: Sequence[Shard],
    dtype: str,
    seed: int,
    folder: Path,
    progress: ProgressFn,
) -> None:
    weights = random_weights(config, seed)
    numbers = {spec.name: number for number, spec in enumerate(specs)}
    done, total = 0, sum(shard.nbytes for shard in layout)
    for shard in layout:
        with (folder / shard.filename).open("wb") as file:
            file.write(shard.header)
            for name in shard.offsets:
                for tile in weights.tiles(numbers[name], specs[numbers[name]]):
                    file.write(encode(tile, dtype))
                progress(done + file.tell(), total, f"Writing {folder.stem}")
        done += shard.nbytes


def _cut(specs: Sequence[TensorSpec], dtype: str, shards: int | None) -> list[Shard]:
    """The files; with ``shards``, of the smallest size that does not make more than that many."""
    width = DTYPES[dtype][1]
    tensors = [
        PlannedTensor(spec.name, dtype, spec.shape, spec.numel * width, (spec,)) for spec in specs
    ]
    if shards is None:
        return lay_out_shards(tensors, MAX_SHARD_BYTES)
    if not 1 <= shards <= len(tensors):
        raise UsageError(f"{len(tensors)} tensors can't be cut into {shards} shards.")
    low, high = 1, sum(tensor.nbytes for tensor in tensors)
    while low < high:
        middle = (low + high) // 2
        if len(lay_out_shards(tensors, middle)) <= shards:
            high = middle
        else:
            low = middle + 1
    return lay_out_shards(tensors, high)


def _demo() -> Path:
    return Path(str(resources.files("qwen3q.data") / "demo"))


def _with_demo_tokens(config: Qwen3Config) -> Qwen3Config:
    """``config`` with the special tokens of the demo model's tokenizer."""
    demo = read_config(_demo())
    if config.vocab_size < demo.vocab_size:
        raise UsageError(
            f"A vocabulary of {config.vocab_size} is too small for the demo model's tokenizer.",
            f"Give at least {demo.vocab_size}.",
        )
    return replace(config, bos_token_id=demo.bos_token_id, eos_token_ids=demo.eos_token_ids)


def _check_room(folder: Path, nbytes: int) -> None:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if nbytes > free:
        raise DiskError(
            f"{folder} would take {nbytes / 1e9:.2f} GB, but {existing} has "
            f"{free / 1e9:.2f} GB free."
        )
