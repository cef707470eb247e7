"""The speed runs as a table and as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.tables import Table


def speed_table(report: Mapping[str, Any]) -> Table | None:
    """One row per artefact and test; None if speed was not measured.

    Speed is the median of the repeats and their standard deviation.
    """
    rows = report.get("speed", [])
    if not rows:
        return None
    heads = ("artefact", "test", "tokens/s", "latency")
    return Table(heads, tuple(_row(row) for row in rows), 2)


def speed_series(report: Mapping[str, Any], phase: str) -> dict[str, list[dict[str, Any]]]:
    """Points by artefact: decode over depth, prefill over length with an empty cache."""
    along = "depth" if phase == "decode" else "tokens"
    series: dict[str, list[dict[str, Any]]] = {}
    for row in report.get("speed", []):
        if row["phase"] == phase and (phase == "decode" or row["depth"] == 0):
            point = {
                "x": row[along],
                "value": row["tokens_per_second"],
                "stddev": row["tokens_per_second_stddev"],
            }
            series.setdefault(str(row["artefact"]), []).append(point)
    return series


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    test = f"{row['phase']} {row['tokens']}"
    speed = f"{row['tokens_per_second']:.2f} ± {row['tokens_per_second_stddev']:.2f}"
    depth = f" at depth {row['depth']}" if row["depth"] else ""
    return (str(row["artefact"]), test + depth, speed, _latency(row))


def _latency(row: Mapping[str, Any]) -> str:
    """Time to the first token, or between tokens at the 50th, 95th and 99th percentile."""
    if "first_token_ms" in row:
        return f"first token {row['first_token_ms']:.1f} ms"
    between = row["latency_ms"]
    return f"{between['p50']:.1f} / {between['p95']:.1f} / {between['p99']:.1f} ms"
