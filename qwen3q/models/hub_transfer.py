"""Bytes from the Hub into its cache: several files at a time, resumed, checked, then linked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)

from qwen3q.errors import SourceError
from qwen3q.models.hub_cache import HubFile, RepoCache, file_checksum
from qwen3q.models.hub_errors import TRANSPORT_ERRORS
from qwen3q.progress import ProgressFn

STREAMS = 4
"""Files fetched at the same time."""

_BARS = "huggingface_hub.http_get"


class Tally:
    """Adds up the bytes of all files for one progress report; safe to call from many threads."""

    def __init__(self, files: Sequence[HubFile], progress: ProgressFn, label: str) -> None:
        self._on_disk = {file.name: file.cached_bytes for file in files}
        self._total = sum(file.nbytes for file in files)
        self._progress = progress
        self._label = label
        self._lock = threading.Lock()

    def set(self, name: str, nbytes: int) -> None:
        """``nbytes`` of file ``name`` are on disk."""
        with self._lock:
            self._on_disk[name] = nbytes
            self._progress(sum(self._on_disk.values()), self._total, self._label)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Fetches files of one commit.

    Attributes:
        cache: where they go.
        commit: which version of the repository.
        endpoint: address of the Hub.
        tally: told of every byte.
    """

    cache: RepoCache
    commit: str
    endpoint: str
    tally: Tally

    def fetch(self, files: Sequence[HubFile]) -> None:
        """Fetches ``files``; what is already whole in the cache is only linked.

        Raises:
            SourceError: a file's checksum does not hold; the file is removed.
            Exception: one of ``TRANSPORT_ERRORS``, as huggingface_hub raised it.
        """
        stop = threading.Event()
        with quiet_hub(), ThreadPoolExecutor(STREAMS) as pool:
            jobs = [pool.submit(self._fetch_one, file, stop) for file in files]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        errors = [error for job in jobs if (error := job.exception()) is not None]
        for error in errors:
            if not isinstance(error, _StoppedError):
                raise error

    def _fetch_one(self, file: HubFile, stop: threading.Event) -> None:
        if stop.is_set():
            raise _StoppedError
        lock = self.cache.lock(file.checksum)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            cache, commit = self.cache, self.commit
            whole = cache.find_whole(commit, file.name, file.checksum, file.nbytes)
            if whole is None:
                self._receive(file, stop)
                self._accept(file)
            if whole != cache.snapshot(commit) / file.name:
                cache.link(commit, file.name, file.checksum)
        self.tally.set(file.name, file.nbytes)

    def _receive(self, file: HubFile, stop: threading.Event) -> None:
        """Fills the partial file; a connection that breaks is taken up where it broke."""
        partial = self.cache.partial(file.checksum)
        partial.parent.mkdir(parents=True, exist_ok=True)
        arrived = self.cache.partial_bytes(file.checksum, file.nbytes)
        url = hf_hub_url(self.cache.repo, file.name, revision=self.commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        with partial.open("ab" if arrived else "wb") as raw:
            target = _Target(raw, file.name, self.tally, stop)
            while True:
                try:
                    http_get(
                        url,
                        cast(BinaryIO, target),
                        resume_size=arrived,
                        headers=headers,
                        expected_size=file.nbytes,
                    )
                    return
                except TRANSPORT_ERRORS as error:
                    before, arrived = arrived, raw.tell()
                    if arrived > file.nbytes:  # The whole file came where its rest was asked for.
                        raw.truncate(0)
                        raise
                    if isinstance(error, HfHubHTTPError) or arrived == before:
                        raise

    def _accept(self, file: HubFile) -> None:
        """Turns the partial file into a blob once its checksum holds."""
        partial = self.cache.partial(file.checksum)
        found = file_checksum(partial, like=file.checksum)
        if found != file.checksum:
            partial.unlink()
            raise wrong_checksum(self.cache.repo, file, found)
        partial.replace(self.cache.blob(file.checksum))


def wrong_checksum(repo: str, file: HubFile, found: str) -> SourceError:
    """The error for a file that is not what the Hub says it is, and was removed."""
    return SourceError(
        f"{file.name} of {repo} is damaged: its checksum is {found[:12]}, "
        f"the Hub's is {file.checksum[:12]}.",
        "It was removed; run it again to fetch it anew.",
    )


class _StoppedError(Exception):
    """Another file failed, so this one's transfer ends."""


class _Target:
    """The part of a file that ``http_get`` writes to; tells the tally, and ends when asked."""

    def __init__(self, raw: BinaryIO, name: str, tally: Tally, stop: threading.Event) -> None:
        self.name = raw.name
        self.seek = raw.seek
        self.tell = raw.tell
        self.truncate = raw.truncate
        self._raw = raw
        self._file_name = name
        self._tally = tally
        self._stop = stop

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise _StoppedError
        written = self._raw.write(data)
        self._tally.set(self._file_name, self._raw.tell())
        return written


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keeps huggingface_hub from drawing bars and logging retries; its errors still come."""
    logger = logging.getLogger("huggingface_hub")
    level, drew = logger.level, not are_progress_bars_disabled(_BARS)
    logger.setLevel(logging.ERROR)
    disable_progress_bars(_BARS)
    try:
        yield
    finally:
        logger.setLevel(level)
        if drew:
            enable_progress_bars(_BARS)
