"""Calibration text from a user's file: plain text, JSON lines, or parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3q.calibrate.samples import COLUMNS, Sample, parse_record
from qwen3q.errors import MissingPackageError, UsageError
from qwen3q.models.nearby import did_you_mean

MOST_TEXT_BYTES = 32 << 20
MOST_RECORD_BYTES = 1 << 30
_GIVE = "Give a text, jsonl or parquet file, or a set, such as --calibration balanced."
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIX = ".parquet"


def is_records(path: Path) -> bool:
    """Whether a file holds records and is no plain text, by its name."""
    return path.suffix.lower() in (*JSON_SUFFIXES, PARQUET_SUFFIX)


def read_plain_text(path: Path) -> str:
    """A whole text file.

    Raises:
        UsageError: empty, too large, or not UTF-8.
    """
    check_file(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no UTF-8 text: byte {error.start} is not.", _GIVE) from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", _GIVE) from None
    if not text.strip():
        raise UsageError(f"{path} is empty.", _GIVE)
    return text


def read_records(path: Path) -> list[Sample]:
    """The samples of a JSON lines or parquet file.

    Raises:
        UsageError: empty, too large, broken, or without a field that holds samples.
        MissingPackageError: parquet needs pyarrow.
    """
    check_file(path)
    records = _parquet(path) if path.suffix.lower() == PARQUET_SUFFIX else _json_lines(path)
    samples = [parse_record(record, where) for record, where in records]
    if not samples:
        raise UsageError(f"{path} is empty.", _GIVE)
    return samples


def check_file(path: Path) -> None:
    """Looks at a file without reading it.

    Raises:
        UsageError: not there, no file, empty, or too large.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Give one text, jsonl or parquet file.")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is a pipe or device.", "Save the text to a file, and give that.")
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", did_you_mean(path) or _GIVE)
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{path} is empty.", _GIVE)
    most, hint = MOST_TEXT_BYTES, "Cut a part of it, such as: head -c 8M"
    if is_records(path):
        most, hint = MOST_RECORD_BYTES, "Give a part of it."
    if size > most:
        raise UsageError(f"{path} has {size >> 20} MiB; at most {most >> 20} are read.", hint)


def _json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield _json(line, where), where
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text.", _GIVE) from None
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.", _GIVE) from None


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(
            f"{where} is no JSON: {getattr(error, 'msg', 'nested too deeply')}.",
            "Each line holds one object.",
        ) from None


def _parquet(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingPackageError(
            f"{path} is parquet, which needs pyarrow.", "pip install pyarrow"
        ) from None
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in COLUMNS if name in names), None)
            if column is None:
                raise UsageError(
                    f"{path} has no column text, messages or conversations; "
                    f"it has {', '.join(names) or 'none'}.",
                    "Rename the column that holds the text.",
                )
            columns = [column, *(name for name in ("tools",) if name in names)]
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield record, f"{path} row {row}"
    except (ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UsageError(f"{path} is no valid parquet: {reason}.", _GIVE) from None
