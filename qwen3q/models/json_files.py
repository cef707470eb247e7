"""The JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3q.errors import REFETCH_MODEL, ModelError


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        ModelError: it is missing, no JSON, or no object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing.", REFETCH_MODEL) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}.", REFETCH_MODEL) from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__}, not an object.", REFETCH_MODEL)
    return raw


def read_optional(path: Path) -> dict[str, Any]:
    """The same; empty where there is no such file."""
    return read_object(path) if path.is_file() else {}
