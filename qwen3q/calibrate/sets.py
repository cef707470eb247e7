"""The calibration sets that come with qwen3q."""

from __future__ import annotations

import difflib
import json
from importlib import resources
from pathlib import Path

from qwen3q.calibrate.samples import Sample, parse_record
from qwen3q.errors import UsageError

DEFAULT_SET = "balanced"
LICENCE = "Apache-2.0"


def sets_folder() -> Path:
    """``calibration_data/``: inside an installed package, beside it in a checkout."""
    package = Path(str(resources.files("qwen3q")))
    installed = package / "data" / "calibration_data"
    return installed if installed.is_dir() else package.parent / "calibration_data"


def set_names() -> list[str]:
    """The sets that can be asked for by name."""
    return sorted({path.parent.name for path in sets_folder().glob("*/*.jsonl")})


def check_set(name: str) -> None:
    """Raises UsageError if there is no set of that name."""
    names = set_names()
    if name not in names:
        near = difflib.get_close_matches(name, [*names, "self"], n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"There is no calibration set {name!r}.",
            f"{meant}Known are {', '.join(names)}; or give a file, hub:ORG/NAME, or self.",
        )


def load_set(name: str) -> list[Sample]:
    """A set's samples, in the order of its files.

    Raises:
        UsageError: no set of that name.
    """
    check_set(name)
    return [
        parse_record(json.loads(line), f"{path.name} line {number}")
        for path in sorted((sets_folder() / name).glob("*.jsonl"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]
