"""The tokenizer of a model that a user names, or that a server says it serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3q.errors import ModelError, Qwen3qError, UsageError
from qwen3q.evaluate.artefact import Artefact, folder_tokenizer_hash
from qwen3q.evaluate.tokens import FolderCodec, GgufCodec, TextCodec
from qwen3q.models.source import small_files


def open_tokenizer(name: str | None, served: Sequence[str], *, offline: bool = False) -> TextCodec:
    """The tokenizer of the model ``name``; without a name, of what a server says it serves.

    Of a model that is not on this machine only the small files are fetched, and only if it was
    named.

    Raises:
        UsageError: no name, and nothing served is on this machine.
        SourceError: nothing by that name.
    """
    if name is not None:
        return _open(name, offline=offline)
    for candidate in served:
        try:
            return _open(candidate, offline=True)
        except Qwen3qError:
            continue
    raise UsageError(
        f"What the server calls {served[0]!r} is not on this machine, so its tokenizer is not "
        "known.",
        "Name the model with --tokenizer, such as --tokenizer qwen3-8b.",
    )


def _open(name: str, *, offline: bool) -> TextCodec:
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return GgufCodec(_tokenizer_only(path, ""))
    folder = small_files(name, offline=offline)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json.")
    return FolderCodec(_tokenizer_only(folder, folder_tokenizer_hash(folder)))


def _tokenizer_only(path: Path, tokenizer: str) -> Artefact:
    return Artefact(path.name, path, "tokenizer", None, 1, tokenizer, {})
