"""The Qwen3 releases: exact shapes, Hub ids and the short names people type."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from qwen3q.models.config import Qwen3Config, parse_config


@dataclass(frozen=True, slots=True)
class Release:
    """One shape of Qwen3 and the Hub repositories that have it.

    Attributes:
        name: canonical short name, such as ``qwen3-30b-a3b``.
        title: as Qwen writes it, such as ``Qwen3-30B-A3B``.
        repos: Hub ids with this shape; the first is what an alias downloads.
        parameters: exact number of parameters, a tied embedding counted once.
        active_parameters: parameters one token passes through.
    """

    name: str
    title: str
    repos: tuple[str, ...]
    config: Qwen3Config
    parameters: int
    active_parameters: int


@cache
def catalog() -> tuple[Release, ...]:
    """All releases, smallest first."""
    text = (resources.files("qwen3q.models") / "catalog.json").read_text(encoding="utf-8")
    return tuple(
        Release(
            name=entry["name"],
            title=entry["title"],
            repos=tuple(entry["repos"]),
            config=parse_config(entry["config"], where=f"catalog entry {entry['name']}"),
            parameters=entry["parameters"],
            active_parameters=entry["active_parameters"],
        )
        for entry in json.loads(text)["releases"]
    )


def find_release(name: str) -> Release | None:
    """The release that an alias or Hub id names, in any case, or None.

    ``qwen3-8b``, ``Qwen3-8B``, ``Qwen/Qwen3-8B`` and ``8b`` all name the same one.
    """
    return _aliases().get(name.strip().lower())


def release_repo(name: str) -> str | None:
    """The Hub id that ``name`` asks for: itself if it is one of a release's, else the first."""
    release = find_release(name)
    if release is None:
        return None
    key = name.strip().lower()
    for repo in release.repos:
        if key in (repo.lower(), repo.split("/")[1].lower()):
            return repo
    return release.repos[0]


def suggest_releases(name: str) -> list[str]:
    """Up to three known names that look like ``name``."""
    keys = {alias: release.name for alias, release in _aliases().items()}
    near = difflib.get_close_matches(name.strip().lower(), keys, n=6, cutoff=0.5)
    return list(dict.fromkeys(keys[alias] for alias in near))[:3]


@cache
def _aliases() -> dict[str, Release]:
    aliases: dict[str, Release] = {}
    for release in catalog():
        names = {release.name, release.title.lower(), release.name.removeprefix("qwen3-")}
        for repo in release.repos:
            names |= {repo.lower(), repo.split("/")[1].lower()}
        for name in names:
            aliases.setdefault(name, release)
    return aliases
