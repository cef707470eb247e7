"""What a quantization depends on, as short strings a journal can compare."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen3q.checkpoint.reader import Checkpoint

SAMPLE_BYTES = 4096
DIGITS = 16
"""Hexadecimal digits that a fingerprint shows: enough to tell runs apart by eye."""


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """Of every tensor: name, dtype, shape, place, and its first 4 KiB.

    Reads little of a large model, and still tells a fine-tune of the same shape from its base.
    Times of files play no part: a copy of a model is the same model.
    """
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        place = [name, info.dtype, list(info.shape), info.path.name, info.start, info.nbytes]
        digest.update(json.dumps(place).encode())
        digest.update(checkpoint.array(name).reshape(-1).view("u1")[:SAMPLE_BYTES].tobytes())
    return digest.hexdigest()[:DIGITS]


def rows_fingerprint(rows: Iterable[Sequence[int]]) -> str:
    """Of calibration tokens and how they are cut into rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + array("q", row).tobytes())
    return digest.hexdigest()[:DIGITS]


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Of small files' names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()[:DIGITS]


def canonical_json(value: Mapping[str, Any]) -> str:
    """One spelling per value: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
