"""The evaluation suites: what ``--suite quick|standard|full`` measures, one YAML file each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import yaml

from qwen3q.errors import UsageError
from qwen3q.evaluate.gate_run import GateOptions
from qwen3q.evaluate.measure import TextOptions
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.tasks import Level

SUITES = ("quick", "standard", "full")


@dataclass(frozen=True, slots=True)
class Suite:
    """A set of measurements on the built-in text.

    Attributes:
        gate: questions; None asks none.
        speed: what is timed of GGUF files; None times nothing.
    """

    text: TextOptions
    gate: GateOptions | None
    speed: SpeedOptions | None


def read_suite(name: str) -> Suite:
    """The suite ``name``.

    Raises:
        UsageError: there is no such suite.
    """
    if name not in SUITES:
        raise UsageError(f"{name!r} is no suite.", f"Known: {', '.join(SUITES)}.")
    file = resources.files("qwen3q.data") / "suites" / f"{name}.yaml"
    raw = yaml.safe_load(file.read_text("utf-8"))
    gate, speed = raw.get("gate"), raw.get("speed")
    return Suite(
        TextOptions(**raw["text"], parse_special=True),
        GateOptions(**gate | {"level": Level(gate["level"])}) if gate else None,
        SpeedOptions(**speed | {key: tuple(speed[key]) for key in ("prompts", "depths")})
        if speed
        else None,
    )
