"""Where a model comes from: a folder, a Hub id, an alias of a release, or the embedded demo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3q.errors import SourceError, UsageError
from qwen3q.models.catalog import Release, find_release, release_repo, suggest_releases
from qwen3q.models.config import Qwen3Config, read_config
from qwen3q.models.nearby import did_you_mean, near_names
from qwen3q.progress import ProgressFn, silent

if TYPE_CHECKING:
    from qwen3q.models.hub import HubSite

DEMO = "demo"
GGUF_SUFFIX = ".gguf"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_PAGE = re.compile(rf"https?://[^/]+/({_HUB_ID.pattern})(?:/.*)?")
_KINDS = (
    "A model is a folder, a Hub id (org/name), an alias (`qwen3q models` lists them) or `demo`."
)


class SourceKind(StrEnum):
    """What a model's name turned out to be."""

    FOLDER = "folder"
    HUB = "hub"
    ALIAS = "alias"
    DEMO = "demo"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found.

    Attributes:
        title: its name for people.
        kind: what the name was.
        config: its shape.
        folder: where its files are, or None when they were not fetched.
        release: the catalog's entry, when it is one.
        repo: Hub id, unless it is a folder or the demo.
        revision: the commit of its files on the Hub; before a download, the revision asked for.
    """

    title: str
    kind: SourceKind
    config: Qwen3Config
    folder: Path | None = None
    release: Release | None = None
    repo: str | None = None
    revision: str | None = None


def describe(
    name: str, *, revision: str | None = None, offline: bool = False, site: HubSite | None = None
) -> ModelSource:
    """What ``name`` is and its config, for plans and estimates; fetches no weights.

    A release comes from the catalog without a network. Of an unknown Hub model only
    ``config.json`` is fetched.

    Args:
        revision: branch, tag or commit on the Hub.
        offline: use only what is downloaded.
        site: which Hub and cache; by default those of the environment.

    Raises:
        SourceError: no such model, or the Hub does not give it.
        ModelError: its config is no Qwen3's.
        UsageError: a revision for a model that has none.
    """
    found = _find_local(name, revision)
    if found is not None:
        return found
    release, repo, kind = _find_repo(name)
    if release is not None:
        config = release.config
    else:
        from qwen3q.models import hub

        with _or_no_folder(name):
            download = hub.fetch_config(repo, revision, site or hub.default_site(offline=offline))
        config, revision = read_config(download.folder), download.commit
    return ModelSource(_title(repo), kind, config, release=release, repo=repo, revision=revision)


def resolve(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: ProgressFn = silent,
    site: HubSite | None = None,
) -> ModelSource:
    """Finds the model ``name`` and fetches what is not on disk; ``folder`` is then never None.

    Args:
        revision: branch, tag or commit on the Hub.
        offline: use only what is downloaded.
        progress: told bytes on disk and bytes in all.
        site: which Hub and cache; by default those of the environment.

    Raises:
        SourceError: no such model, or the Hub does not give it.
        ModelError: its config is no Qwen3's.
        DiskError: not enough room.
        UsageError: a revision for a model that has none.
    """
    found = _find_local(name, revision)
    if found is not None:
        return found
    from qwen3q.models import hub

    release, repo, kind = _find_repo(name)
    with _or_no_folder(name):
        download = hub.plan_download(repo, revision, site or hub.default_site(offline=offline))
    folder = hub.execute(download, progress=progress)
    config = read_config(folder)
    return ModelSource(_title(repo), kind, config, folder, release, repo, download.commit)


def local_folder(name: str) -> Path:
    """The folder of a model on this machine: ``name`` itself, the demo's, or a downloaded one's.

    Reads nothing in it and asks no Hub.

    Raises:
        UsageError: ``name`` is a file.
        SourceError: no such folder, or a model of the Hub that is not downloaded.
        ModelError: a downloaded config is no Qwen3's.
    """
    path = Path(name).expanduser()
    if name != DEMO and path.is_dir():
        return path
    if path.is_file():
        error = _is_a_file(name, path)
        raise UsageError(error.message, error.hint)
    folder = resolve(name, offline=True).folder
    assert folder is not None
    return folder


def small_files(name: str, *, offline: bool = False) -> Path:
    """A folder with the config and the tokenizer of a model; of one on the Hub, without weights.

    Raises:
        SourceError: no such model, or the Hub does not give it.
        ModelError: its config is no Qwen3's.
    """
    source = describe(name, offline=offline)
    if source.folder is not None:
        return source.folder
    if offline:
        return local_folder(name)
    assert source.repo is not None
    from qwen3q.models import hub

    download = hub.plan_download(source.repo, None, hub.default_site())
    small = tuple(file for file in download.files if not file.is_weight)
    return hub.execute(replace(download, files=small))


def hub_repo(name: str) -> str:
    """The Hub id that ``name`` stands for.

    Raises:
        SourceError: nothing by that name, or a model that is on disk already.
    """
    found = _find_local(name, None)
    if found is not None:
        raise SourceError(
            f"{name} is on this machine already: {found.folder}.", "There is nothing to download."
        )
    return _find_repo(name)[1]


def unknown_model(name: str) -> SourceError:
    """The error for a name that nothing has, with the names that look like it."""
    near = suggest_releases(name)
    hint = f"Did you mean {' or '.join(near)}? {_KINDS}" if near else _KINDS
    return SourceError(f"There is no model {name!r}.", hint)


def _find_local(name: str, revision: str | None) -> ModelSource | None:
    """The demo, or the folder ``name``; None where the name is one for the Hub.

    A folder with a config goes before an alias or Hub id of the same name.
    """
    if not name.strip():
        raise SourceError(f"{name!r} names no model.", _KINDS)
    path = Path(name).expanduser()
    is_release = find_release(name) is not None
    if name == DEMO:
        found = _demo()
    elif (path / "config.json").is_file() or (path.is_dir() and not is_release):
        found = ModelSource(path.resolve().name, SourceKind.FOLDER, read_config(path), path)
    elif is_release:
        return None
    elif path.exists():
        raise _is_a_file(name, path)
    elif page := _HUB_PAGE.fullmatch(name):
        raise SourceError(f"{name} is an address, not a model.", f"Give its Hub id: {page[1]}.")
    elif _looks_like_path(name):
        kind = "file" if path.suffix == GGUF_SUFFIX else "folder"
        raise SourceError(f"There is no {kind} {name}.", did_you_mean(path) or _KINDS)
    else:
        return None
    if revision is not None:
        raise UsageError(
            f"{name} is no model of the Hub, so it has no revision {revision!r}.",
            "Leave the revision out.",
        )
    return found


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "~", os.sep))
        or name.endswith((os.sep, GGUF_SUFFIX))
        or name.count(os.sep) > 1
    )


def _is_a_file(name: str, path: Path) -> SourceError:
    if path.suffix == GGUF_SUFFIX:
        return SourceError(
            f"{name} is a GGUF file, not a model folder.",
            "Give the float model that it was made from: its folder, Hub id or alias.",
        )
    inside = (path.parent / "config.json").is_file()
    return SourceError(
        f"{name} is a file, not a model folder.",
        f"Give its folder: {path.parent}." if inside else _KINDS,
    )


@contextmanager
def _or_no_folder(name: str) -> Iterator[None]:
    """Says of a name the Hub does not give that it is no folder either, where it looks like one:
    its parent is a local folder."""
    try:
        yield
    except SourceError as error:
        path = Path(name)
        if len(path.parts) < 2 or not path.parent.is_dir():
            raise
        raise SourceError(
            f"There is no folder {name}, and the Hub does not give it: {error.message}",
            did_you_mean(path) or error.hint,
        ) from None


def _find_repo(name: str) -> tuple[Release | None, str, SourceKind]:
    kind = SourceKind.HUB if "/" in name else SourceKind.ALIAS
    repo = release_repo(name)
    if repo is not None:
        return find_release(name), repo, kind
    if _HUB_ID.fullmatch(name):
        return None, name, kind
    error = unknown_model(name)
    here = [path for path in near_names(Path(name)) if (path / "config.json").is_file()]
    if here:
        error.hint = f"Did you mean the folder {' or '.join(map(str, here))}?"
    raise error


def _demo() -> ModelSource:
    folder = Path(str(resources.files("qwen3q.data") / "demo"))
    return ModelSource("Qwen3 demo", SourceKind.DEMO, read_config(folder), folder)


def _title(repo: str) -> str:
    return repo.split("/")[1]
