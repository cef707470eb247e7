"""What is done and durable: one JSON line per unit of work, synced after the unit's own data.

A run that was killed reads it and does the rest. The first line says what the work belongs to:
continuing with another model, calibration, recipe or version is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3q.errors import DiskError, UsageError

FORMAT = 2
OUTSIDE = "outside layers"
"""The unit of embeddings, final norm and lm_head."""
_LAYER = "layer "


def unit_name(layer: int | None) -> str:
    """The name of a layer's unit of work."""
    return OUTSIDE if layer is None else f"{_LAYER}{layer}"


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that is done, such as a decoder layer.

    Attributes:
        name: as ``unit_name`` gives it.
        tensors: sha256 of the bytes of each stored tensor, by name.
        report: one row per quantized linear, as ``report.json`` has them.
        notes: what a person should know.
        made_on: the processor and its arithmetic, where the bytes depend on it.
    """

    name: str
    tensors: Mapping[str, str]
    report: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    made_on: str = ""

    @property
    def layer(self) -> int | None:
        """The decoder layer it is; None outside layers."""
        return None if self.name == OUTSIDE else int(self.name.removeprefix(_LAYER))


@dataclass(slots=True)
class Journal:
    """The journal of one artefact.

    Attributes:
        path: its file.
        units: what is done, in order of completion, by name.
    """

    path: Path
    units: dict[str, Unit] = field(default_factory=dict)

    def append(self, unit: Unit) -> None:
        """Notes a unit whose data is already synced; durable when this returns."""
        line = {
            "unit": unit.name,
            "tensors": dict(unit.tensors),
            "report": [dict(row) for row in unit.report],
            "notes": list(unit.notes),
            "made_on": unit.made_on,
        }
        _write_line(self.path, line, "ab")
        self.units[unit.name] = unit


def start_journal(path: Path, fingerprint: Mapping[str, str]) -> Journal:
    """A new journal for the work that ``fingerprint`` describes.

    Args:
        fingerprint: what the result depends on; keys are named in the refusal to continue.
    """
    _write_line(path, {"journal": FORMAT, "fingerprint": dict(fingerprint)}, "wb")
    return Journal(path)


def continue_journal(path: Path, fingerprint: Mapping[str, str]) -> Journal:
    """Opens a journal to go on with; a line that was cut off by a kill is dropped.

    A journal whose first line was cut off holds no work yet and is started again.

    Raises:
        UsageError: it belongs to other work; the message names what differs.
    """
    lines = _whole_lines(path)
    if not lines:
        return start_journal(path, fingerprint)
    head = lines[0]
    if head.get("journal") != FORMAT or not isinstance(head.get("fingerprint"), dict):
        raise UsageError(
            f"{path} is no journal of this version of qwen3q.", "Start again with --force."
        )
    _compare(path, head["fingerprint"], fingerprint)
    units = (
        Unit(
            line["unit"],
            line["tensors"],
            tuple(line["report"]),
            tuple(line["notes"]),
            line["made_on"],
        )
        for line in lines[1:]
    )
    return Journal(path, {unit.name: unit for unit in units})


def _compare(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if "calibration" in differ and "calibration rows" in differ:
        differ.remove("calibration rows")  # a number that says no more than the description does
    if not differ:
        return
    changes = "; ".join(_change(key, before.get(key), now.get(key)) for key in differ)
    raise UsageError(
        f"The unfinished run of {path} can't be continued: {changes}.",
        "Call it with the same model, calibration and options, or start again with --force.",
    )


def _change(key: str, before: str | None, now: str | None) -> str:
    """What differs; of descriptions only the entries that do."""
    old, new = _entries(before), _entries(now)
    if old is None or new is None:
        return f"{key} was {_short(before)}, is {_short(now)}"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    shown = [
        f"{name} {_short(_text(old.get(name)))}, is {_short(_text(new.get(name)))}"
        for name in names
        if name != "fingerprint" or len(names) == 1
    ]
    return f"{key} was {'; '.join(shown)}"


def _entries(value: str | None) -> dict[str, Any] | None:
    try:
        entries = json.loads(value or "")
    except ValueError:
        return None
    return entries if isinstance(entries, dict) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 60 else f"{value[:57]}..."


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that end in a newline and hold an object; cuts what follows them off the file."""
    lines: list[dict[str, Any]] = []
    keep = 0
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            line = json.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            line = None
        if not isinstance(line, dict):
            break
        lines.append(line)
        keep += len(raw)
    with path.open("r+b") as file:
        file.truncate(keep)
        os.fsync(file.fileno())
    return lines


def _write_line(path: Path, line: Mapping[str, Any], mode: str) -> None:
    data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    try:
        with path.open(mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError(f"Can't write {path}: {error.strerror}.") from None
