"""What ``config.json`` says about quantization, checked before anything relies on its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen3q.errors import ModelError

_KEY = "quantization_config"
_REFETCH = "Fetch the model's config.json again, or quantize the float model anew."


def quant_method(raw: Mapping[str, Any], where: str) -> str | None:
    """How the weights are packed, such as ``gptq``; None where they are float.

    Every quantizer states itself in ``quantization_config``; one that leaves out the method is
    called by the key.

    Raises:
        ModelError: it is no object, a compressed-tensors one whose groups are not, or has bits or a
            group size that are no numbers.
    """
    stated = raw.get(_KEY)
    if stated is None or stated == {}:
        return None
    if not isinstance(stated, dict):
        raise ModelError(f"{where}: {_KEY} is {stated!r}, not an object.", _REFETCH)
    for name, least, most in (("bits", 1, 32), ("group_size", -1, 1 << 20)):
        value = stated.get(name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise ModelError(
                f"{where}: {_KEY}: {name} is {value!r}, not {least} to {most}.", _REFETCH
            )
    for place, part in _parts(stated):
        if part is not None and not isinstance(part, dict):
            raise ModelError(f"{where}: {_KEY}: {place} is {part!r}, not an object.", _REFETCH)
        bits = part.get("num_bits") if part else None
        if bits is not None and (not isinstance(bits, int) or not 0 < bits <= 32):
            raise ModelError(
                f"{where}: {_KEY}: {place}: num_bits is {bits!r}, not 1 to 32.", _REFETCH
            )
    return str(stated.get("quant_method") or _KEY)


def _parts(stated: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of what must be an object in a compressed-tensors config, outer ones first."""
    groups = stated.get("config_groups")
    yield "config_groups", groups
    for name, group in (groups or {}).items():
        yield name, group
        for key in ("weights", "input_activations"):
            yield f"{name}.{key}", (group or {}).get(key)
