"""Speed and memory as tables and as the points of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3q.evaluate.groups import named_by_run
from qwen3q.evaluate.tables import NONE, Table, size, with_error

Row = Mapping[str, Any]

SPEED_NOTE = (
    "Median of the repeats after a warm-up ± their standard deviation, all sequences together. "
    "Latency is the time to the first token, or three times between tokens at the 50th, 95th and "
    "99th percentile. Predicted: the "
    "estimator's figure with its error band; ≤ is no prediction but the limit that reading this "
    "machine's memory sets, as measured in the same run."
)
MEMORY_NOTE = (
    "The largest run of each artefact. Weights, cache and compute buffers are llama.cpp's own "
    "account (in torch: its tensors); the rest is what the process took beside them, by the growth "
    "of its resident set on a CPU (– where that can't be told) and by NVML on a GPU. Predicted: "
    "what qwen3q estimate says, whose rest is the driver's context and a row of logits."
)
_PARTS = ("weights", "kv", "compute", "rest")


def speed_table(report: Row) -> Table | None:
    """One row per artefact and test; None if speed was not measured."""
    rows = named_by_run(report.get("speed", []))
    if not rows:
        return None
    heads = ["artefact", "engine", "test", "tokens/s", "predicted", "latency, ms"]
    energy = any(row.get("joules_per_token") is not None for row in rows)
    if energy:
        heads.append("J/token")
    cells = [_speed_row(row) + ((_energy(row),) if energy else ()) for row in rows]
    return Table(tuple(heads), _named_once(cells), 3)


def memory_table(report: Row) -> Table | None:
    """Measured and predicted parts per device; None if memory was not measured.

    The last row of a device is what the estimator says; torch's own path has no prediction.
    """
    rows = named_by_run(report.get("memory", []))
    if not rows:
        return None
    heads = ("artefact", "engine", "memory", "weights", "KV cache", "compute", "rest", "total")
    cells = []
    for row in rows:
        names = (str(row["artefact"]), str(row["engine"]))
        where = f"{row['device']}, {row['context']:,} tokens"
        if row["batch"] > 1:
            where += f" × {row['batch']}"
        cells.append((*names, where, *_part_cells(row)))
        if row.get("predicted"):
            cells.append((*names, "predicted", *_part_cells(row["predicted"])))
    return Table(heads, _named_once(cells), 3)


def speed_series(report: Row, phase: str, along: str) -> dict[str, list[dict[str, Any]]]:
    """Points by artefact along ``tokens``, ``depth`` or ``batch``.

    What does not vary is held at its smallest, which every run has. Empty if nothing varies.
    """
    rows = [row for row in named_by_run(report.get("speed", [])) if row["phase"] == phase]
    for other in {"tokens", "depth", "batch"} - {along}:
        least = min((row.get(other, 1) for row in rows), default=0)
        rows = [row for row in rows if row.get(other, 1) == least]
    series: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row.get(along, 1))):
        point = {
            "x": row.get(along, 1),
            "value": row["tokens_per_second"],
            "stddev": row["tokens_per_second_stddev"],
        }
        series.setdefault(str(row["artefact"]), []).append(point)
    varies = any(len(points) > 1 for points in series.values())
    return series if varies else {}


def test_name(row: Row) -> str:
    """``prefill 512 × 4 at depth 1,024``."""
    batch = f" × {row['batch']}" if row.get("batch", 1) > 1 else ""
    depth = f" at depth {row['depth']:,}" if row["depth"] else ""
    return f"{row['phase']} {row['tokens']:,}{batch}{depth}"


def _named_once(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Artefact and engine in the first of their rows alone."""
    named = [row[:2] for row in rows]
    return tuple(
        ("", "", *row[2:]) if index and named[index] == named[index - 1] else row
        for index, row in enumerate(rows)
    )


def _speed_row(row: Row) -> tuple[str, ...]:
    return (
        str(row["artefact"]),
        str(row.get("engine", "llama.cpp")),
        test_name(row),
        _rate(row["tokens_per_second"], row["tokens_per_second_stddev"]),
        _predicted(row.get("predicted") or {}),
        _latency(row),
    )


def _rate(value: float, deviation: float) -> str:
    """About four digits: ``1,391 ± 163``, ``31.42 ± 0.18``."""
    digits = 2 if value < 100 else 1 if value < 1000 else 0
    return with_error(value, deviation, digits)


def _predicted(predicted: Row) -> str:
    rate, bound = predicted.get("tokens_per_second"), predicted.get("bound_tokens_per_second")
    if rate is not None:
        return f"{rate:.1f} (±{predicted['band']:.0%})"
    return NONE if bound is None else f"≤ {bound:.1f}"


def _latency(row: Row) -> str:
    """Time to the first token, or between tokens at the 50th, 95th and 99th percentile."""
    if row.get("first_token_ms") is not None:
        return f"first {row['first_token_ms']:.1f}"
    between = row["latency_ms"]
    return f"{between['p50']:.1f} / {between['p95']:.1f} / {between['p99']:.1f}"


def _energy(row: Row) -> str:
    joules = row.get("joules_per_token")
    return NONE if joules is None else f"{joules:.3g}"


def _part_cells(parts: Row) -> tuple[str, ...]:
    values: Sequence[int | None] = [parts.get(f"{part}_bytes") for part in _PARTS]
    total = size(sum(value for value in values if value is not None))
    return (*(NONE if value is None else size(value) if value else "0" for value in values), total)
