"""The gate of ``qwen3q eval``: its options over a suite's, and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qwen3q.cli.narrow_tables import show_tables

if TYPE_CHECKING:
    from qwen3q.evaluate.gate_run import GateOptions


def gate_options(base: GateOptions | None, asked: bool, **given: Any) -> GateOptions | None:
    """A suite's gate, or the default one if it is ``asked`` for, with what was given.

    Args:
        given: fields of ``GateOptions``; None and False were not given.

    Raises:
        UsageError: options of a gate that is not asked for.
    """
    from qwen3q.errors import UsageError
    from qwen3q.evaluate.gate_run import GateOptions
    from qwen3q.evaluate.tasks import Level

    level = given.get("level")
    if level not in (None, *Level):
        raise UsageError(f"{level!r} is no level.", f"Known: {', '.join(Level)}.")
    changes = {
        name: value for name, value in given.items() if value is not None and value is not False
    }
    if level is not None:
        changes["level"] = Level(level)
    if base is None and not asked:
        if changes:
            raise UsageError("Options of the gate need --gate or --suite.")
        return None
    return replace(base or GateOptions(), **changes)


def show_gate(report: Mapping[str, Any]) -> None:
    """The gate's tables, if it was asked for."""
    from qwen3q.evaluate.gate_tables import gate_tables

    show_tables(gate_tables(report))
