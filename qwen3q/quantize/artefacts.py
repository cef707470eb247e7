"""What a run leaves on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3q.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Artefact:
    """A finished file or folder, the plan it follows and the seconds its run took."""

    path: Path
    plan: Plan
    seconds: float
