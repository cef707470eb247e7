"""What a model folder, a GGUF file or a release holds, from headers and the catalog alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import CheckpointError
from qwen3q.formats.agreement import disagreement, stored_in_words
from qwen3q.formats.gguf_file import GgufHeader, read_header, split_paths
from qwen3q.formats.recognise import recognise
from qwen3q.models.config import Qwen3Config, parse_config, read_config_json
from qwen3q.models.source import describe
from qwen3q.models.tensors import (
    active_parameter_count,
    check_tensors,
    model_tensors,
    parameter_count,
)
from qwen3q.plan.gguf_types import gguf_format


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies on disk; ``shape`` is row-major."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        path: the folder or file, or None for a release that is not on this machine.
        facts: label and text for people, in reading order.
        config: the shape as fields; empty for a GGUF, whose metadata are facts.
        tensors: what is stored; of a model that is not on this machine, what its config gives, or
            nothing where it is quantized.
    """

    path: Path | None
    facts: dict[str, str]
    config: dict[str, Any]
    tensors: tuple[StoredTensor, ...]

    @property
    def types(self) -> dict[str, tuple[int, int]]:
        """Count and bytes per storage type, most bytes first."""
        kinds: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            count, nbytes = kinds.get(tensor.type, (0, 0))
            kinds[tensor.type] = (count + 1, nbytes + tensor.nbytes)
        return dict(sorted(kinds.items(), key=lambda item: -item[1][1]))


def inspect_model(name: str) -> Inspection:
    """Inspects a GGUF file, a model folder in any format, or a model by its name.

    A folder's safetensors file stands for the folder.

    Raises:
        Qwen3qError: nothing there, or what is there is broken or no Qwen3.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix == ".gguf":
            return _inspect_gguf(path)
        folder = _folder_of(path)
        return _inspect_folder(folder, folder.resolve().name)
    source = describe(name)
    if source.folder is not None:
        return _inspect_folder(source.folder, source.title)
    facts = {"model": source.title, "from": source.repo or ""} | _shape(source.config)
    if source.config.quant_method is not None:
        facts["format"] = f"{source.config.quant_method}; its tensors are known once downloaded"
        return Inspection(None, facts, asdict(source.config), ())
    stored = tuple(
        StoredTensor(spec.name, "BF16", spec.shape, 2 * spec.numel)
        for spec in model_tensors(source.config)
    )
    return Inspection(None, facts, asdict(source.config), stored)


def _folder_of(path: Path) -> Path:
    """The model folder that a safetensors file is a part of."""
    folder = path.parent
    if path.suffix != ".safetensors" or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{path} is neither a .gguf nor a .safetensors file beside a config.json.",
            "Give a model folder or a GGUF file.",
        )
    with Checkpoint(folder) as checkpoint:
        if path not in checkpoint.paths:
            raise CheckpointError(
                f"{path} is no part of the model in its folder.", f"Give the folder: {folder}."
            )
    return folder


def _inspect_folder(folder: Path, title: str) -> Inspection:
    raw = read_config_json(folder)
    config = parse_config(raw, str(folder / "config.json"))
    quantization = raw.get("quantization_config")
    with Checkpoint(folder) as checkpoint:
        if not quantization:
            check_tensors(config, checkpoint.shapes, str(folder))
        stored = tuple(
            StoredTensor(info.name, info.dtype, info.shape, info.nbytes)
            for info in checkpoint.tensors.values()
        )
        files = len(checkpoint.paths)
        layouts = _layouts(config, checkpoint, quantization) if quantization else {}
    kind = describe_format(quantization) if quantization else "safetensors, not quantized"
    facts = {"model": title, "folder": str(folder), "format": kind} | layouts
    facts["files"] = str(files)
    return Inspection(folder, facts | _shape(config), asdict(config), stored)


def _layouts(
    config: Qwen3Config, checkpoint: Checkpoint, quantization: Mapping[str, Any]
) -> dict[str, str]:
    """How the tensors are stored, and what is wrong where the config says something else."""
    try:
        found = recognise(config, checkpoint.tensors, str(checkpoint.folder)).values()
    except CheckpointError as error:
        return {"warning": error.message}
    against = disagreement(quantization, found)
    return {"stored": stored_in_words(found)} | ({"warning": against} if against else {})


def describe_format(quantization: Mapping[str, Any]) -> str:
    """A ``quantization_config`` in words: ``gptq, 4 bits, group_size 128, sym``."""
    method = str(quantization.get("quant_method", "unknown"))
    if method == "compressed-tensors":
        return _compressed_tensors_in_words(quantization)
    words = [method]
    for key, text in (("bits", "{} bits"), ("group_size", "group_size {}"), ("version", "{}")):
        if key in quantization:
            words.append(text.format(quantization[key]))
    if method == "bitsandbytes":
        words.append("nf4" if quantization.get("load_in_4bit") else "int8")
    if "sym" in quantization:
        words.append(_symmetry(quantization["sym"]))
    elif "zero_point" in quantization:
        words.append(_symmetry(not quantization["zero_point"]))
    dynamic = quantization.get("dynamic")
    if isinstance(dynamic, Mapping) and any(str(key).startswith("+:") for key in dynamic):
        words.append("with exceptions by tensor")
    if "weight_block_size" in quantization:
        words.append(f"blocks of {quantization['weight_block_size']}")
    return ", ".join(words)


def _compressed_tensors_in_words(quantization: Mapping[str, Any]) -> str:
    groups = [group for group in (quantization.get("config_groups") or {}).values() if group]
    weights = [group.get("weights") or {} for group in groups]
    inputs = [group.get("input_activations") or {} for group in groups]
    words = [f"compressed-tensors {quantization.get('format', '')}".strip()]
    words += _numbers_in_words("{} bits", (w.get("num_bits") for w in weights))
    words += _numbers_in_words("group_size {}", (w.get("group_size") for w in weights))
    signs = {_symmetry(w["symmetric"]) for w in weights if "symmetric" in w}
    words += [" and ".join(sorted(signs, reverse=True))] if signs else []
    words += _numbers_in_words("activations {} bits", (i.get("num_bits") for i in inputs))
    return ", ".join(words)


def _numbers_in_words(text: str, numbers: Iterable[int | None]) -> list[str]:
    """The text with all numbers that are stated; nothing if none is."""
    stated = sorted({number for number in numbers if number})
    return [text.format(" and ".join(map(str, stated)))] if stated else []


def _symmetry(symmetric: object) -> str:
    return "symmetric" if symmetric else "asymmetric"


def _shape(config: Qwen3Config) -> dict[str, str]:
    parameters, active = parameter_count(config), active_parameter_count(config)
    facts = {
        "architecture": config.model_type,
        "parameters": f"{parameters:,}"
        + (f" ({active:,} active per token)" if config.is_moe else ""),
        "layers": str(config.num_hidden_layers),
        "hidden size": str(config.hidden_size),
        "attention": f"{config.num_attention_heads} heads, {config.num_key_value_heads} for keys "
        f"and values, head_dim {config.head_dim}",
    }
    if config.is_moe:
        facts["experts"] = (
            f"{config.num_experts}, {config.num_experts_per_tok} per token, "
            f"intermediate size {config.moe_intermediate_size}"
        )
    else:
        facts["intermediate size"] = str(config.intermediate_size)
    facts["vocabulary"] = f"{config.vocab_size:,}" + (
        ", embeddings tied" if config.tie_word_embeddings else ""
    )
    facts["context"] = f"{config.max_position_embeddings:,}" + (
        f" (YaRN x{config.yarn.factor:g})" if config.yarn else ""
    )
    return facts


def _inspect_gguf(path: Path) -> Inspection:
    headers = [read_header(part) for part in split_paths(path)]
    first = headers[0]
    stored = tuple(
        StoredTensor(t.name, t.type, t.shape, t.nbytes)
        for header in headers
        for t in header.tensors.values()
    )
    return Inspection(path, _gguf_facts(path, first, headers, stored), {}, stored)


def _gguf_facts(
    path: Path, first: GgufHeader, headers: list[GgufHeader], stored: tuple[StoredTensor, ...]
) -> dict[str, str]:
    metadata = first.metadata
    architecture = str(metadata.get("general.architecture", "unknown"))
    weights = sum(prod(t.shape) for t in stored)
    nbytes = sum(t.nbytes for t in stored)
    facts = {
        "model": str(metadata.get("general.name", path.stem)),
        "file": str(path),
        "format": gguf_format(metadata.get("general.file_type")),
        "file size": f"{sum(h.file_bytes for h in headers):,} bytes"
        + (f" in {len(headers)} parts" if len(headers) > 1 else ""),
        "bits per weight": f"{nbytes * 8 / weights:.3f}" if weights else "no tensors",
        "architecture": architecture,
    }
    for label, key in (
        ("layers", "block_count"),
        ("context", "context_length"),
        ("hidden size", "embedding_length"),
        ("experts", "expert_count"),
        ("rope scaling", "rope.scaling.type"),
    ):
        if f"{architecture}.{key}" in metadata:
            facts[label] = str(metadata[f"{architecture}.{key}"])
    for label, key in (
        ("tokenizer", "tokenizer.ggml.pre"),
        ("quantized by", "general.quantized_by"),
        ("source", "general.source.repo_url"),
    ):
        if key in metadata:
            facts[label] = str(metadata[key])
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        facts["vocabulary"] = f"{len(tokens):,}"
    facts["chat template"] = "yes" if "tokenizer.chat_template" in metadata else "no"
    return facts
