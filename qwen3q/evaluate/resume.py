"""Measurements kept as they finish, so that an interrupted run goes on where it was.

One file per artefact beside the reference's logits. What is taken back depends on the artefact's
files (names, bytes, times), on everything that was asked for, and on this release.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from qwen3q import __version__
from qwen3q.evaluate.artefact import Artefact, file_facts

SUFFIX = ".measured.json"


class Kept:
    """What earlier calls measured in one folder.

    Attributes:
        notes: what was taken or measured again, and why, as sentences.
    """

    def __init__(self, folder: Path | None, *, resume: bool = False) -> None:
        """Keeps in ``folder``, or nowhere; takes back what is there only if ``resume``."""
        self._folder = folder
        self._resume = resume
        self.notes: list[str] = []

    def get(self, artefact: Artefact, section: str, asked: Any, measure: Callable[[], Any]) -> Any:
        """The section as an earlier call measured it, or ``measure()``, which is then kept.

        Args:
            section: what is measured, such as ``fidelity``.
            asked: everything but the artefact's files that it depends on; its ``repr`` counts.

        Returns:
            Plain data, as JSON has it.

        Raises:
            DiskError: it can't be kept.
        """
        # what runs behind an endpoint can change unseen
        if self._folder is None or artefact.endpoint is not None:
            return measure()
        path = self._folder / file_name(artefact)
        key = {"files": _digest(file_facts(artefact)), "asked": _digest((__version__, asked))}
        sections = _read(path)
        found = sections.get(section)
        if self._resume and isinstance(found, dict) and "value" in found:
            if all(found.get(name) == value for name, value in key.items()):
                self.notes.append(f"{artefact.name}: {section} taken from an earlier call.")
                return found["value"]
            changed = found.get("files") != key["files"]
            why = "its files changed" if changed else "other options were asked for"
            self.notes.append(f"{artefact.name}: {section} measured again, as {why}.")
        from qwen3q.evaluate.report import write_text

        value = measure()
        sections[section] = {**key, "value": value}
        text = json.dumps({"artefact": artefact.name, "sections": sections}, indent=1)
        write_text(path, text + "\n")
        return value


def file_name(artefact: Artefact) -> str:
    """The file that keeps an artefact's measurements."""
    words = re.sub(r"[^\w.-]+", "-", artefact.name)[:80]
    return f"{words}-{_digest(str(artefact.path.resolve()))[:8]}{SUFFIX}"


def _read(path: Path) -> dict[str, Any]:
    """The sections of a file; none if it is absent or broken."""
    try:
        sections = json.loads(path.read_text(encoding="utf-8"))["sections"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return dict(sections) if isinstance(sections, Mapping) else {}


def _digest(facts: Any) -> str:
    return sha256(repr(facts).encode()).hexdigest()
