"""Measurements kept as they finish, so that an interrupted run goes on where it was.

One file per artefact beside the reference's logits, and while questions are asked, one with the
answers so far. What is taken back depends on the artefact's
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
from qwen3q.evaluate.answers import Answers
from qwen3q.evaluate.artefact import Artefact, file_facts
from qwen3q.files import write_text

LOGITS_NAME = "reference.logits"
SUFFIX = ".measured.json"
ANSWERS_SUFFIX = ".answers.jsonl"


class Kept:
    """What earlier calls measured in one folder.

    Attributes:
        notes: what was taken or measured again, and why, as sentences.
        fits: whether the folder's reference logits are this call's, and so its measurements.
    """

    def __init__(self, folder: Path | None, *, resume: bool = False) -> None:
        """Keeps in ``folder``, or nowhere; takes back what is there only if ``resume``."""
        self._folder = folder
        self._resume = resume
        self.notes: list[str] = []
        self.fits = False

    def what_is_kept(self) -> str:
        """How to go on from this call's measurements; empty if none are kept."""
        if self._folder is None or not self.fits:
            return ""
        return f"What is measured is kept in {self._folder}: go on with --resume."

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
        key = _key(artefact, asked)
        sections = _read(path)
        found = sections.get(section)
        if self._resume and isinstance(found, dict) and "value" in found:
            if all(found.get(name) == value for name, value in key.items()):
                self.notes.append(f"{artefact.name}: {section} taken from an earlier call.")
                return found["value"]
            changed = found.get("files") != key["files"]
            why = "its files changed" if changed else "other options were asked for"
            self.notes.append(f"{artefact.name}: {section} measured again, as {why}.")
        value = measure()
        sections[section] = {**key, "value": value}
        text = json.dumps({"artefact": artefact.name, "sections": sections}, indent=1)
        write_text(path, text + "\n")
        return value

    def answers(self, artefact: Artefact, section: str, asked: Any) -> Answers:
        """The answers of a section that is not complete, as far as an earlier call got them.

        Args:
            section, asked: as ``get``'s.

        Raises:
            DiskError: they can't be kept.
        """
        if self._folder is None or artefact.endpoint is not None:
            return Answers(None, {}, resume=False)
        path = self._folder / file_name(artefact).replace(SUFFIX, ANSWERS_SUFFIX)
        found = Answers(path, {"section": section, **_key(artefact, asked)}, resume=self._resume)
        if found.tokens:
            count = f"{len(found.tokens)} answers" if len(found.tokens) > 1 else "one answer"
            self.notes.append(f"{artefact.name}: {count} of {section} taken from an earlier call.")
        return found


def _key(artefact: Artefact, asked: Any) -> dict[str, str]:
    return {"files": _digest(file_facts(artefact)), "asked": _digest((__version__, asked))}


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
