"""The streaming clients' figures as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen3q.evaluate.groups import named_by_run
from qwen3q.evaluate.tables import Table

STREAMING_NOTE = (
    "Every client asks for one answer after another. Times are at the 50th, 95th and 99th "
    "percentile: from a request to its first text, and between two pieces of text. Tokens/s are "
    "those of all clients together; of one answer, the median after its first token."
)


def streaming_table(report: Mapping[str, Any]) -> Table | None:
    """One row per endpoint and number of clients; None if no clients were run."""
    rows = named_by_run(report.get("streaming", []))
    if not rows:
        return None
    heads = (
        "endpoint",
        "clients",
        "answers",
        "tokens",
        "tokens/s",
        "of one",
        "first token, ms",
        "between, ms",
    )
    return Table(heads, tuple(_row(row) for row in rows), 1)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    failed = f", {row['failed']} failed" if row["failed"] else ""
    read = row["prompt_tokens_read"] or row["prompt_tokens"]
    return (
        str(row["artefact"]),
        str(row["concurrency"]),
        f"{row['requests']}{failed}",
        f"{read} + {_made(row)}",
        _number(row["tokens_per_second"]),
        _number(row["request_tokens_per_second"]),
        _times(row["first_token_ms"]),
        _times(row["between_ms"]),
    )


def _made(row: Mapping[str, Any]) -> str:
    """Tokens of an answer: what was asked for, unless they ended before."""
    answers, asked = row["requests"] - row["failed"], row["generate"]
    counted = answers and row["prompt_tokens_read"] is not None
    made = row["generated_tokens"] / answers if counted else asked
    return str(asked) if made >= asked else f"{made:.0f} of {asked}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(times: Mapping[str, float] | None) -> str:
    return "/".join(_number(times[name]) for name in ("p50", "p95", "p99")) if times else "–"
