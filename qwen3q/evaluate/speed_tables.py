"""The speed runs as a table and as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.tables import Table


def speed_table(report: Mapping[str, Any]) -> Table | None:
    """One row per artefact and test; None if speed was not measured."""
    rows = report.get("speed", [])
    if not rows:
        return None
    predicted = any("predicted_tokens_per_second" in row for row in rows)
    heads = ("artefact", "phase", "depth", "tokens", "tokens/s", "first token", "p50", "p95", "p99")
    cells = [_row(row, predicted) for row in rows]
    return Table((*heads, "predicted") if predicted else heads, tuple(cells), 2)


def speed_series(report: Mapping[str, Any], phase: str) -> dict[str, list[dict[str, Any]]]:
    """Points by artefact for a plot of ``phase``: decode over depth, prefill over length."""
    along = "depth" if phase == "decode" else "tokens"
    series: dict[str, list[dict[str, Any]]] = {}
    for row in report.get("speed", []):
        if row["phase"] == phase:
            point = {
                "x": row[along],
                "value": row["tokens_per_second"],
                "stddev": row["tokens_per_second_stddev"],
            }
            series.setdefault(str(row["artefact"]), []).append(point)
    return series


def _row(row: Mapping[str, Any], predicted: bool) -> tuple[str, ...]:
    latency = row.get("latency_ms") or {}
    cells = (
        str(row["artefact"]),
        str(row["phase"]),
        str(row["depth"]),
        str(row["tokens"]),
        f"{row['tokens_per_second']:.2f} ± {row['tokens_per_second_stddev']:.2f}",
        f"{row['first_token_ms']:.1f} ms" if "first_token_ms" in row else "",
        *(f"{latency[p]:.1f} ms" if p in latency else "" for p in ("p50", "p95", "p99")),
    )
    if not predicted:
        return cells
    figure = row.get("predicted_tokens_per_second")
    return (*cells, f"{figure:.2f}" if figure is not None else "")
