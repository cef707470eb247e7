"""One comparison of the report, and the tables it reads."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Check:
    """A predicted figure beside a true one.

    Attributes:
        limit: relative error that is allowed; None where the row is shown but not judged.
        left_out: why the row can't be compared; the figures are then 0.
    """

    row: str
    predicted: float
    true: float
    limit: float | None = None
    left_out: str = ""

    @property
    def error(self) -> float:
        return self.predicted / self.true - 1 if self.true else 0.0

    @property
    def holds(self) -> bool:
        return self.limit is None or abs(self.error) <= self.limit


def read_table(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of one truth table."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def judged(checks: list[Check]) -> Iterator[Check]:
    """The checks that have figures."""
    return (check for check in checks if not check.left_out)
