"""The built-in evaluation text, in five parts; what each is stands in ``evaluation/README.md``."""

from __future__ import annotations

from importlib import resources

from qwen3q.errors import UsageError

PARTS = ("english", "chinese", "code", "mathematics", "thinking")


def evaluation_text(*parts: str) -> str:
    """The named parts one after another; all of them if none is named.

    Raises:
        UsageError: there is no such part.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UsageError(
            f"The built-in text has no part {unknown[0]!r}.", f"Parts: {', '.join(PARTS)}."
        )
    folder = resources.files("qwen3q.data") / "evaluation"
    return "\n".join((folder / f"{part}.txt").read_text("utf-8") for part in parts or PARTS)
