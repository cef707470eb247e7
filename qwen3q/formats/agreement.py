"""Whether a folder's ``config.json`` says of its quantization what its tensors say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qwen3q.formats.recognise import Storage, StoredWeight
from qwen3q.plan.schemes import PER_CHANNEL

_STORAGES = {
    "gptq": {Storage.GPTQ},
    "awq": {Storage.AWQ},
    "bitsandbytes": {Storage.BNB_4BIT, Storage.BNB_INT8},
    "fp8": {Storage.FP8_BLOCKS, Storage.FP8_CHANNELS},
    "compressed-tensors": {
        Storage.PACK_QUANTIZED,
        Storage.INT_QUANTIZED,
        Storage.FP8_CHANNELS,
        Storage.FP8_BLOCKS,
        Storage.NVFP4,
    },
}
"""What each ``quant_method`` may store; of a method that is not here nothing is claimed."""

_GROUPED = frozenset({Storage.GPTQ, Storage.AWQ, Storage.PACK_QUANTIZED})
"""Layouts whose bits and groups differ between folders."""


def disagreement(quantization: Mapping[str, Any], found: Iterable[StoredWeight]) -> str:
    """What a ``quantization_config`` says against the tensors, as a sentence; empty if nothing.

    An engine reads the config, so a folder in which they differ is served as noise or not at all.

    Args:
        quantization: empty for a folder whose config has none.
    """
    quantized = [weight for weight in found if weight.storage is not Storage.FLOAT]
    method = str(quantization.get("quant_method", "quantized"))
    if not quantization and quantized:
        first = quantized[0]
        return f"config.json says nothing, but {first.spec.name} is stored as {first.storage}."
    if quantization and not quantized:
        return f"config.json says {method}, but every tensor is float."
    expected = _STORAGES.get(method)
    if method == "bitsandbytes":
        expected = {Storage.BNB_4BIT if quantization.get("load_in_4bit") else Storage.BNB_INT8}
    if expected is None:
        return ""
    for weight in quantized:
        if weight.storage not in expected:
            wanted = method if len(expected) > 1 else next(iter(expected))
            return (
                f"config.json says {wanted}, but {weight.spec.name} is stored as {weight.storage}."
            )
    numbers = list(_stated(quantization))
    bits = {bits for bits, _ in numbers if bits is not None}
    groups = {group for _, group in numbers if group is not None}
    for weight in quantized:
        if weight.storage not in _GROUPED:
            continue
        name = weight.spec.name
        if bits and weight.bits not in bits:
            return f"config.json says {_either(bits)} bits, but {name} has {weight.bits}."
        if groups and _count(weight, weight.group_size) not in {_count(weight, g) for g in groups}:
            return (
                f"config.json says group_size {_either(groups)}, but {name} has groups of "
                f"{weight.group_size}."
            )
    return ""


def stored_in_words(found: Iterable[StoredWeight]) -> str:
    """``26 float, 42 gptq``: how many tensors of the model are stored in which layout."""
    kinds = Counter(weight.storage for weight in found)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _stated(quantization: Mapping[str, Any]) -> Iterator[tuple[int | None, int | None]]:
    """Bits and group size wherever they stand, for the folder or an exception; None if left out."""
    groups = quantization.get("config_groups")
    if groups:
        for group in groups.values():
            weights = (group or {}).get("weights") or {}
            size = PER_CHANNEL if weights.get("strategy") == "channel" else None
            yield _number(weights, "num_bits"), _number(weights, "group_size") or size
        return
    yield _number(quantization, "bits"), _number(quantization, "group_size")
    dynamic = quantization.get("dynamic")
    for exception in dynamic.values() if isinstance(dynamic, Mapping) else ():
        if isinstance(exception, Mapping):
            yield _number(exception, "bits"), _number(exception, "group_size")


def _number(stated: Mapping[str, Any], key: str) -> int | None:
    value = stated.get(key)
    return value if type(value) is int and value != 0 else None


def _count(weight: StoredWeight, group_size: int) -> int:
    """Groups of a linear; the last may be short."""
    columns = weight.spec.shape[-1]
    return 1 if group_size == PER_CHANNEL else -(-columns // group_size)


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))
