"""Models from the Hub: what a download would take, then the download itself.

Requests go through huggingface_hub and files land in its cache, so what other tools fetched is not
fetched again. The transfer keeps its own partial files because huggingface_hub 2.x drops them when
a run dies, and a blob enters the cache only once its checksum holds.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, constants

from qwen3q.errors import DiskError, SourceError
from qwen3q.models.config import read_config
from qwen3q.models.hub_cache import (
    COMMIT,
    GIT_SHA1,
    SHA256,
    HubFile,
    RepoCache,
    check_revision,
    discard,
    file_checksum,
    link_checksum,
    missing_files,
)
from qwen3q.models.hub_errors import explain_hub_errors
from qwen3q.models.hub_transfer import Tally, Transfer, wrong_checksum
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "*.safetensors.index.json",
    "*.safetensors",
)
"""The files of a repository that are fetched, all at its top level. Never a pickle."""

_API_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HubSite:
    """Which Hub is asked and where its files are kept.

    Attributes:
        endpoint: address, without a slash at its end.
        cache: folder of all repositories.
        offline: whether only the cache may be used.
    """

    endpoint: str
    cache: Path
    offline: bool = False


def default_site(*, offline: bool = False) -> HubSite:
    """The Hub that HF_ENDPOINT, HF_HUB_CACHE (or HF_HOME) and HF_HUB_OFFLINE describe."""
    return HubSite(
        endpoint=constants.ENDPOINT.rstrip("/"),
        cache=Path(constants.HF_HUB_CACHE).expanduser(),
        offline=offline or constants.HF_HUB_OFFLINE,
    )


@dataclass(frozen=True, slots=True)
class Download:
    """What fetching a model takes; ``execute`` fetches it.

    Attributes:
        repo: Hub id.
        revision: branch, tag or commit that was asked for.
        commit: what it stands for.
        files: the small ones first.
        free_bytes: free room on the cache's disk.
    """

    site: HubSite
    repo: str
    revision: str
    commit: str
    files: tuple[HubFile, ...]
    free_bytes: int

    @property
    def repo_cache(self) -> RepoCache:
        return RepoCache(self.site.cache, self.repo)

    @property
    def folder(self) -> Path:
        """Where the model's files are when the download is done."""
        return self.repo_cache.snapshot(self.commit)

    @property
    def total_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """Bytes that still have to come over the network."""
        return sum(file.nbytes - file.cached_bytes for file in self.files)


def plan_download(repo: str, revision: str | None = None, site: HubSite | None = None) -> Download:
    """Asks the Hub which files ``repo`` has and the cache which of them it holds.

    Fetches no file. Offline, or for a commit that the cache holds whole, it asks only the cache.

    Raises:
        SourceError: no such model or revision, no access, no connection, nothing to load in it,
            or, offline, not wholly in the cache.
        UsageError: a revision that can't be one.
    """
    site = site or default_site()
    revision = check_revision(revision or constants.DEFAULT_REVISION)
    cache = RepoCache(site.cache, repo)
    if site.offline:
        return _cached_download(cache, revision, site)
    if COMMIT.fullmatch(revision) and not missing_files(cache.snapshot(revision)):
        return _cached_download(cache, revision, site)
    commit, siblings = _list_repo(repo, revision, site)
    files = [_file(cache, commit, one, site) for one in siblings if _is_wanted(one.rfilename)]
    if not any(file.is_weight for file in files):
        raise _no_weights(repo, [sibling.rfilename for sibling in siblings])
    return _download(cache, revision, commit, files, site)


def execute(
    download: Download, *, progress: ProgressFn = silent, verify_cached: bool = False
) -> Path:
    """Fetches what is missing, checks every checksum, and returns the model's folder.

    The config is read before the weights are fetched, so a model that is no Qwen3 costs little.

    Args:
        progress: told bytes on disk and bytes in all.
        verify_cached: check the files that were on disk before this run too.

    Raises:
        SourceError: no access, no connection, or a checksum that does not hold; the bad file is
            removed, so running it again repairs it.
        ModelError: the config is no Qwen3's.
        DiskError: not enough room.
    """
    if verify_cached:
        _verify_cached(download, progress)
    if not download.site.offline:
        _check_room(download)
        tally = Tally(download.files, progress, f"Downloading {download.repo}")
        _fetch(download, [file for file in download.files if not file.is_weight], tally)
        read_config(download.folder)
        _fetch(download, [file for file in download.files if file.is_weight], tally)
        download.repo_cache.remember_commit(download.revision, download.commit)
    read_config(download.folder)
    return download.folder


def fetch_config(repo: str, revision: str | None = None, site: HubSite | None = None) -> Download:
    """Fetches only ``config.json``, so that a plan can be made before the weights are here.

    Returns:
        What fetching the rest takes; its folder holds the config.

    Raises:
        SourceError, UsageError: as ``plan_download`` and ``execute``.
    """
    download = plan_download(repo, revision, site)
    if not download.site.offline:
        config = [file for file in download.files if file.name == "config.json"]
        _fetch(download, config, Tally(config, silent, ""))
        download.repo_cache.remember_commit(download.revision, download.commit)
    return download


def _list_repo(repo: str, revision: str, site: HubSite) -> tuple[str, list[RepoSibling]]:
    """The commit behind ``revision`` and the repository's files."""
    api = HfApi(endpoint=site.endpoint)
    with explain_hub_errors(repo, revision, site.endpoint):
        try:
            info = api.model_info(
                repo, revision=revision, files_metadata=True, timeout=_API_SECONDS
            )
        except (KeyError, TypeError, json.JSONDecodeError):
            raise _not_a_hub(site) from None
    if info.sha is None or not COMMIT.fullmatch(info.sha) or info.siblings is None:
        raise _not_a_hub(site)
    return info.sha, info.siblings


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in WANTED)


def _file(cache: RepoCache, commit: str, sibling: RepoSibling, site: HubSite) -> HubFile:
    """The listed file, once its size and checksum, which become part of a path, are sound."""
    checksum: str | None
    nbytes: int | None
    if sibling.lfs is not None:
        checksum, nbytes, form = sibling.lfs.sha256, sibling.lfs.size, SHA256
    else:
        checksum, nbytes, form = sibling.blob_id, sibling.size, GIT_SHA1
    if checksum is None or not form.fullmatch(checksum) or nbytes is None or nbytes < 0:
        raise _not_a_hub(site)
    name = sibling.rfilename
    return HubFile(name, nbytes, checksum, cache.cached_bytes(commit, name, checksum, nbytes))


def _cached_download(cache: RepoCache, revision: str, site: HubSite) -> Download:
    """A download whose files are all in the cache."""
    commit = cache.find_commit(revision)
    folder = cache.snapshot(commit) if commit else None
    if commit is None or folder is None or not folder.is_dir():
        raise SourceError(
            f"{cache.repo} at {revision} is not in {cache.cache}, and this run is offline.",
            f"Run `qwen3q download {cache.repo}` with a connection.",
        )
    missing = missing_files(folder)
    if missing:
        raise SourceError(
            f"{cache.repo} is only partly in {cache.cache}, and this run is offline: "
            f"{missing[0]} is missing.",
            f"Run `qwen3q download {cache.repo}` with a connection.",
        )
    files = []
    for entry in folder.iterdir():
        if _is_wanted(entry.name) and entry.is_file():
            nbytes = entry.stat().st_size
            files.append(HubFile(entry.name, nbytes, link_checksum(entry), nbytes))
    return _download(cache, revision, commit, files, site)


def _download(
    cache: RepoCache, revision: str, commit: str, files: list[HubFile], site: HubSite
) -> Download:
    return Download(
        site=site,
        repo=cache.repo,
        revision=revision,
        commit=commit,
        files=tuple(sorted(files, key=lambda file: (file.is_weight, file.name))),
        free_bytes=_free_bytes(site.cache),
    )


def _fetch(download: Download, files: list[HubFile], tally: Tally) -> None:
    transfer = Transfer(download.repo_cache, download.commit, download.site.endpoint, tally)
    with explain_hub_errors(download.repo, download.revision, download.site.endpoint):
        transfer.fetch(files)


def _verify_cached(download: Download, progress: ProgressFn) -> None:
    """Checks the files that are whole on disk; removes and names the first bad one."""
    cache = download.repo_cache
    whole = [
        (file, path)
        for file in download.files
        if (path := cache.find_whole(download.commit, file.name, file.checksum, file.nbytes))
    ]
    done, total = 0, sum(file.nbytes for file, _ in whole)
    for file, path in whole:
        found = file_checksum(path, like=file.checksum) if file.checksum else ""
        if found != file.checksum:
            discard(path)
            raise wrong_checksum(download.repo, file, found)
        done += file.nbytes
        progress(done, total, f"Checking {download.repo}")


def _check_room(download: Download) -> None:
    if download.missing_bytes > download.free_bytes:
        raise DiskError(
            f"{download.repo} needs {download.missing_bytes / 1e9:.2f} GB more, but "
            f"{download.site.cache} has {download.free_bytes / 1e9:.2f} GB free.",
            "Make room, or set HF_HOME to a folder on a larger disk.",
        )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _no_weights(repo: str, names: list[str]) -> SourceError:
    if any(name.endswith(".gguf") for name in names):
        hint = "It holds GGUF files, which are quantized already; give the model they come from."
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        hint = "It holds pickles, which can run code when they are loaded; qwen3q never does."
    else:
        hint = "Give a model with *.safetensors files."
    return SourceError(f"{repo} holds no *.safetensors files.", hint)


def _not_a_hub(site: HubSite) -> SourceError:
    return SourceError(
        f"{site.endpoint} does not answer as the Hub does.", "Check HF_ENDPOINT and any proxy."
    )
