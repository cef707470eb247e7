"""Answers to numbered questions, each kept as it is complete, so that none is asked twice."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Self

from qwen3q.errors import DiskError
from qwen3q.files import write_text


class Answers:
    """Answers in a file: a line of JSON that says what was asked, then one for each.

    Use it in a ``with`` that ends when what follows from the answers is kept. Then the file goes;
    after an exception it stays.

    Attributes:
        tokens: of each answer there is, by the question's number.
    """

    def __init__(self, path: Path | None, key: Mapping[str, str], *, resume: bool) -> None:
        """Keeps in ``path``, or nowhere; takes back what is there under ``key`` if ``resume``.

        Raises:
            DiskError: it can't be written.
        """
        self.tokens: dict[int, list[int]] = {}
        self._path = path
        self._file: FileIO | None = None
        if path is None:
            return
        if resume:
            self.tokens.update(_read(path, key))
        # written anew, as a killed call may have left half a line
        lines = [json.dumps(key), *map(json.dumps, self.tokens.items())]
        write_text(path, "".join(f"{line}\n" for line in lines))

    def add(self, number: int, tokens: list[int]) -> None:
        """Keeps one more.

        Raises:
            DiskError: it can't be written.
        """
        self.tokens[number] = tokens
        if self._path is None:
            return
        try:
            # unbuffered: what could not be written is not tried once more when it is closed
            self._file = self._file or self._path.open("ab", buffering=0)
            line = f"{json.dumps((number, tokens))}\n".encode()
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DiskError(f"Can't write {self._path}: {error.strerror}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._path is not None and failure is None:
            self._path.unlink(missing_ok=True)


def _read(path: Path, key: Mapping[str, str]) -> Iterator[tuple[int, list[int]]]:
    """The whole lines of a file that was kept under ``key``; none of any other."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != key:
            return
    except (OSError, ValueError, RecursionError):
        return
    for line in lines:
        answer = _answer(line)
        if answer is not None:
            yield answer


def _answer(line: str) -> tuple[int, list[int]] | None:
    try:
        number, tokens = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    whole = isinstance(tokens, list) and all(type(value) is int for value in (number, *tokens))
    return (number, tokens) if whole else None
