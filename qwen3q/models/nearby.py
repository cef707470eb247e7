"""What lies beside a path that is not there: the names it may have been meant as."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path


def near_names(path: Path) -> list[Path]:
    """Up to three entries of ``path``'s folder whose names look like its own."""
    names: dict[str, str] = {}
    with suppress(OSError):
        names = {entry.name.lower(): entry.name for entry in sorted(path.parent.iterdir())}
        names = {key: name for key, name in names.items() if name != path.name}
    near = difflib.get_close_matches(path.name.lower(), names, n=3, cutoff=0.6)
    return [path.with_name(names[key]) for key in near]


def did_you_mean(path: Path) -> str:
    """A question that offers the names near to ``path``, or an empty string."""
    near = near_names(path)
    return f"Did you mean {' or '.join(map(str, near))}?" if near else ""
