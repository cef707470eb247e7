"""The repository on the local Hub that downloads are tried with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3q.models.hub import HubSite, execute, plan_download

REPO = "someone/Qwen3-tiny"
SHARD = "model-00001-of-00002.safetensors"
CHUNK = 1 << 16
"""Bytes that are written at a time, and after which connections may break."""


def fetch(site: HubSite, revision: str | None = None, **options: Any) -> Path:
    return execute(plan_download(REPO, revision, site), **options)


def offline(site: HubSite) -> HubSite:
    """The same cache without the network."""
    return HubSite(site.endpoint, site.cache, offline=True)
