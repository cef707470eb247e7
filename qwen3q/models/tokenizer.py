"""A model folder's tokenizer files: vocabulary, merges, special tokens, chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3q.errors import REFETCH_MODEL, ModelError
from qwen3q.models.json_files import read_object, read_optional

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 split text before BPE."""

_FOREIGN = "qwen3q handles Qwen3's own tokenizer alone; fetch its tokenizer.json again."


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the BPE vocabulary, such as ``<think>``."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the folder says about its tokenizer.

    Attributes:
        vocab: byte-level BPE tokens and their ids.
        merges: pairs in order of priority, ``"left right"``.
        added: tokens that are matched as a whole.
        config: ``tokenizer_config.json``.
        chat_template: Jinja source, or None.
    """

    vocab: dict[str, int]
    merges: tuple[str, ...]
    added: tuple[AddedToken, ...]
    config: dict[str, Any]
    chat_template: str | None

    def token_id(self, content: str) -> int | None:
        """The id of a token given as text."""
        for token in self.added:
            if token.content == content:
                return token.id
        return self.vocab.get(content)

    def named_id(self, name: str) -> int | None:
        """The id of ``tokenizer_config.json``'s ``name``, such as ``eos_token``."""
        token = self.config.get(name)
        if isinstance(token, dict):
            token = token.get("content")
        return self.token_id(token) if isinstance(token, str) else None


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with neither truncation nor padding.

    Raises:
        ModelError: ``tokenizer.json`` is missing or broken.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing.", REFETCH_MODEL)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{path} is no tokenizer: {error}.", REFETCH_MODEL) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a folder.

    Raises:
        ModelError: a file is missing or broken, or the tokenizer is not Qwen's byte-level BPE.
    """
    path = folder / "tokenizer.json"
    raw = read_object(path)
    try:
        model = raw["model"]
        vocab: dict[str, int] = dict(model["vocab"].items())
        merges = tuple(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
        added = tuple(_added_token(token) for token in raw.get("added_tokens", ()))
        pattern = split_pattern(raw)
    except (AttributeError, KeyError, TypeError):
        raise ModelError(f"{path} is no byte-level BPE tokenizer.", _FOREIGN) from None
    if pattern != QWEN2_PATTERN:
        raise ModelError(
            f"{path} splits text by {pattern!r}, which is not Qwen's pattern.",
            _FOREIGN,
        )
    config = read_optional(folder / "tokenizer_config.json")
    return TokenizerFiles(vocab, merges, added, config, read_chat_template(folder, config))


def _added_token(token: dict[str, Any]) -> AddedToken:
    number, content = token["id"], token["content"]
    if not isinstance(number, int) or not isinstance(content, str):
        raise TypeError
    return AddedToken(number, content, bool(token.get("special")))


def split_pattern(raw: dict[str, Any]) -> str | None:
    """The regular expression of a ``tokenizer.json``'s pre-tokenizer, if it has one."""
    pre = raw.get("pre_tokenizer") or {}
    for step in pre.get("pretokenizers", [pre]):
        if step.get("type") == "Split":
            pattern = step.get("pattern", {}).get("Regex")
            return pattern if isinstance(pattern, str) else None
    return None


def read_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The Jinja chat template: ``chat_template.jinja`` (5.x) before ``tokenizer_config.json``.

    Raises:
        ModelError: the file can't be read, or is no UTF-8.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ModelError(f"Can't read {jinja}: {why}.", REFETCH_MODEL) from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) else None
