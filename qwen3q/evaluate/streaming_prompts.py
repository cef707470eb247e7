"""Prompts of an exact number of tokens, no two alike, so that no prefix cache makes them free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwen3q.counts import counted
from qwen3q.data.texts import evaluation_text
from qwen3q.errors import ModelError, Qwen3qError, UsageError
from qwen3q.evaluate.artefact import Artefact, folder_tokenizer_hash
from qwen3q.evaluate.tokens import FolderCodec, GgufCodec, TextCodec
from qwen3q.models.source import describe, resolve

_WORDS = 600


@dataclass(frozen=True, slots=True)
class Prompt:
    """``text`` has exactly the tokens ``tokens``."""

    tokens: tuple[int, ...]
    text: str


def make_prompts(codec: TextCodec, length: int, count: int, seed: int) -> list[Prompt]:
    """``count`` prompts of ``length`` tokens each, of words of the built-in English text.

    The same seed gives the same prompts.

    Raises:
        UsageError: a length that no words have.
    """
    found = re.findall(r"[A-Za-z]{2,}", evaluation_text("english"))
    known = list(dict.fromkeys(found))[:_WORDS]
    by_length: dict[int, list[str]] = {}
    for word in known:
        by_length.setdefault(len(codec.encode(f" {word}", parse_special=False)), []).append(word)
    words = [(size, word) for size, same in sorted(by_length.items()) for word in same]
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(count):
        text, left = "", length
        while left > 0:
            fitting = [pair for pair in words if pair[0] <= left] if left < 8 else words
            if not fitting:
                break
            size, word = fitting[int(rng.integers(len(fitting)))]
            if size <= left:
                text, left = f"{text} {word}", left - size
        tokens = codec.encode(text, parse_special=False).tolist()
        if len(tokens) != length or length < 1:
            raise UsageError(
                f"No prompt of {counted(length, 'token')} can be made with this tokenizer."
            )
        prompts.append(Prompt(tuple(tokens), text))
    return prompts


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
    folder = _small_files(name, offline=offline)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json.")
    return FolderCodec(_tokenizer_only(folder, folder_tokenizer_hash(folder)))


def _small_files(name: str, *, offline: bool) -> Path:
    """A folder with the model's config and tokenizer."""
    source = describe(name, offline=offline)
    if source.folder is not None:
        return source.folder
    if offline:
        found = resolve(name, offline=True).folder
        assert found is not None
        return found
    assert source.repo is not None
    from qwen3q.models import hub

    download = hub.plan_download(source.repo, None, hub.default_site())
    small = tuple(file for file in download.files if not file.is_weight)
    return hub.execute(replace(download, files=small))


def _tokenizer_only(path: Path, tokenizer: str) -> Artefact:
    return Artefact(path.name, path, "tokenizer", None, 1, tokenizer, {})
