"""The Hub's cache folder, shared with every tool that uses huggingface_hub.

``models--ORG--NAME/blobs/CHECKSUM`` holds the bytes, ``snapshots/COMMIT/NAME`` links to them, and
``refs/REVISION`` holds the commit that a branch or tag stood for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from qwen3q.errors import UsageError

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[\w][\w.+\-/]*")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_INDEX = "model.safetensors.index.json"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a model on the Hub.

    Attributes:
        name: its name in the repository and in the folder.
        nbytes: its size.
        checksum: SHA-256 (64 digits) or git blob SHA-1 (40 digits) in hexadecimal; empty when it
            is not known, which happens only offline in a cache without links.
        cached_bytes: how many of its bytes were on disk when this was made.
    """

    name: str
    nbytes: int
    checksum: str
    cached_bytes: int

    @property
    def is_weight(self) -> bool:
        return self.name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class RepoCache:
    """One repository's part of the cache.

    Attributes:
        cache: the cache folder of all repositories.
        repo: Hub id.
    """

    cache: Path
    repo: str

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    def blob(self, checksum: str) -> Path:
        return self.folder / "blobs" / checksum

    def partial(self, checksum: str) -> Path:
        """Where a blob grows until it is whole and its checksum holds."""
        return self.folder / "blobs" / f"{checksum}.qwen3q.incomplete"

    def lock(self, checksum: str) -> Path:
        """The lock file that huggingface_hub takes for the same blob."""
        return self.cache / ".locks" / self.folder.name / f"{checksum}.lock"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def find_commit(self, revision: str) -> str | None:
        """The commit that ``revision`` last stood for, or None."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember_commit(self, revision: str, commit: str) -> None:
        """Notes that ``revision`` stands for ``commit``."""
        if revision == commit:
            return
        ref = self.folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = ref.with_name(f"{ref.name}.{os.getpid()}.new")
        fresh.write_text(commit, encoding="ascii")
        fresh.replace(ref)

    def link(self, commit: str, name: str, checksum: str) -> None:
        """Makes the blob appear as ``name`` in the snapshot; moves it there without symlinks."""
        entry = self.snapshot(commit) / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.unlink(missing_ok=True)
        try:
            entry.symlink_to(Path("..", "..", "blobs", checksum))
        except OSError:
            self.blob(checksum).replace(entry)

    def find_whole(self, commit: str, name: str, checksum: str, nbytes: int) -> Path | None:
        """The file with its full size: in the snapshot, or as a blob of another one."""
        for path in (self.snapshot(commit) / name, self.blob(checksum)):
            if path.is_file() and path.stat().st_size == nbytes:
                return path
        return None

    def cached_bytes(self, commit: str, name: str, checksum: str, nbytes: int) -> int:
        """How many of the file's ``nbytes`` are on disk: all, those of a partial one, or none."""
        if self.find_whole(commit, name, checksum, nbytes):
            return nbytes
        return self.partial_bytes(checksum, nbytes)

    def partial_bytes(self, checksum: str, nbytes: int) -> int:
        """How many bytes of an unfinished blob can be kept."""
        partial = self.partial(checksum)
        arrived = partial.stat().st_size if partial.is_file() else 0
        return arrived if arrived <= nbytes else 0


def discard(path: Path) -> None:
    """Removes a bad file: the entry or blob, and the bytes behind a link."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def check_revision(revision: str) -> str:
    """``revision`` if it can name a branch, tag or commit; it becomes part of a path.

    Raises:
        UsageError: it can't.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(f"{revision!r} is no revision.", "Give a branch, a tag or a commit.")
    return revision


def missing_files(folder: Path) -> list[str]:
    """What a snapshot lacks to be a model: config, tokenizer, its index's shards or any weights."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        missing.append(_TOKENIZERS[0])
    if (folder / _INDEX).is_file():
        shards = _index_shards(folder / _INDEX)
        missing += [name for name in shards if not (folder / name).is_file()]
    elif not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing


def _index_shards(path: Path) -> list[str]:
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted(name for name in shards if isinstance(name, str))


def link_checksum(entry: Path) -> str:
    """The checksum that a snapshot's link points to, or nothing where it is a plain file."""
    name = entry.readlink().name if entry.is_symlink() else ""
    return name if SHA256.fullmatch(name) or GIT_SHA1.fullmatch(name) else ""


def file_checksum(path: Path, like: str) -> str:
    """The file's SHA-256, or its git blob SHA-1 when ``like`` is one (40 hexadecimal digits)."""
    if GIT_SHA1.fullmatch(like):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
