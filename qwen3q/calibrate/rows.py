"""Tokens in rows of one length: what every calibrating algorithm reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3q.errors import UsageError
from qwen3q.fingerprint import rows_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_LENGTH = 512
MOST_ROWS = 256
"""At most so many rows are taken when nobody says how many."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Calibration tokens.

    Attributes:
        rows: token ids, all rows of one length.
        description: where they come from, for card, report and journal: name, samples (rows),
            length, tokens, seed, licence, fingerprint of the rows (sha256).
    """

    rows: tuple[tuple[int, ...], ...]
    description: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.rows))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of ``text``; ``<|im_start|>`` and the like are read as their token."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold lone surrogates
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def pack(
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    samples: int | None,
    what: str,
    most: int = MOST_ROWS,
) -> tuple[tuple[int, ...], ...]:
    """Documents one after another, cut into rows; reads no more documents than it needs.

    Args:
        samples: rows wanted; None for up to ``most``.
        what: the source's name, for errors.

    Raises:
        UsageError: too few tokens.
    """
    check_size(length, samples)
    wanted = (samples or most) * length
    stream: list[int] = []
    for document in documents:
        stream.extend(document)
        if len(stream) >= wanted:
            break
    rows = min(len(stream), wanted) // length
    require_rows(rows, len(stream), length=length, samples=samples, what=what)
    return tuple(tuple(stream[at * length : (at + 1) * length]) for at in range(rows))


def spread(
    tokens: Sequence[int], *, length: int, samples: int | None, what: str, most: int = MOST_ROWS
) -> tuple[tuple[int, ...], ...]:
    """One long text cut into rows; of more rows than wanted, evenly spaced ones.

    Args:
        samples: rows wanted; None for up to ``most``.

    Raises:
        UsageError: too few tokens.
    """
    check_size(length, samples)
    rows = len(tokens) // length
    require_rows(rows, len(tokens), length=length, samples=samples, what=what)
    starts = [at * length for at in evenly_spaced(rows, samples or most)]
    return tuple(tuple(tokens[start : start + length]) for start in starts)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``0 .. count - 1``."""
    wanted = min(wanted, count)
    return [at * count // wanted for at in range(wanted)]


def describe(
    name: str, rows: Sequence[Sequence[int]], **more: str | int | float | None
) -> dict[str, Any]:
    """The description of ``TokenRows``; entries of ``more`` that are None are left out."""
    return {
        "name": name,
        "samples": len(rows),
        "length": len(rows[0]),
        "tokens": sum(map(len, rows)),
        **{key: value for key, value in more.items() if value is not None},
        "fingerprint": rows_fingerprint(rows),
    }


def check_size(length: int, samples: int | None) -> None:
    """Refuses rows that hold nothing.

    Raises:
        UsageError: a length or a number of rows out of range.
    """
    if length < 2:
        raise UsageError(f"--calibration-length {length} is too short; at least 2 tokens.")
    if samples is not None and samples < 1:
        raise UsageError(f"--calibration-samples {samples} is no number of rows.")


def require_rows(rows: int, tokens: int, *, length: int, samples: int | None, what: str) -> None:
    """Refuses a source with fewer rows than asked for, or with none.

    Raises:
        UsageError: too few tokens.
    """
    wanted = samples or 1
    if rows < wanted:
        plural = "s" if wanted > 1 else ""
        raise UsageError(
            f"{what} holds {tokens} tokens; {wanted} row{plural} of {length} need"
            f"{'' if plural else 's'} {wanted * length}.",
            "Lower --calibration-samples or --calibration-length, or give more text.",
        )
