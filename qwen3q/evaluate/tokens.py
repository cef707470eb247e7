"""Text to tokens and back with an artefact's own tokenizer, without loading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3q.errors import ModelError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.models.config import read_config, read_generation_config, token_ids
from qwen3q.models.tokenizer import load_tokenizer, read_tokenizer


class TextCodec(Protocol):
    """A tokenizer.

    Attributes:
        bos: what each chunk's first token is replaced by, or None.
        eos: what ends a text; it stands before one where there is no ``bos``.
        chat_template: Jinja source, or None.
        trained_context: tokens that the model was trained to read at once.
        vocab_size: rows of the vocabulary, padding included: the width of its logits.
    """

    bos: int | None
    eos: int
    chat_template: str | None
    trained_context: int
    vocab_size: int

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end an answer."""

    def encode(self, text: str, *, parse_special: bool) -> NDArray[np.int32]:
        """Token ids; with ``parse_special`` ``<|im_start|>`` and the like are one token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens`` without control tokens; ``<think>`` is kept."""

    def spell(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, control tokens too."""


class FolderCodec:
    """``tokenizer.json`` of a model folder, through Hugging Face's tokenizers."""

    def __init__(self, artefact: Artefact) -> None:
        self._tokenizer = load_tokenizer(artefact.path)
        files = read_tokenizer(artefact.path)
        self.bos: int | None = None
        self.chat_template = files.chat_template
        stated = read_generation_config(artefact.path)
        config = read_config(artefact.path)
        ends = token_ids(stated.get("eos_token_id"))
        self.stop_tokens = frozenset(ends or config.eos_token_ids)
        eos = files.named_id("eos_token")
        self.eos = min(self.stop_tokens) if eos is None else eos
        self.trained_context = config.max_position_embeddings
        self.vocab_size = config.vocab_size

    def encode(self, text: str, *, parse_special: bool) -> NDArray[np.int32]:
        self._tokenizer.encode_special_tokens = not parse_special
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def spell(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))


class GgufCodec:
    """The vocabulary inside a GGUF file, through llama.cpp."""

    def __init__(self, artefact: Artefact) -> None:
        from qwen3q.llama.model import LlamaModel, LoadOptions

        self._model = LlamaModel(artefact.path, LoadOptions(vocab_only=True))
        self.bos = self._model.bos if self._model.add_bos else None
        self.eos = self._model.eos
        architecture = self._model.metadata("general.architecture")
        self.trained_context = int(self._model.metadata(f"{architecture}.context_length") or 0)
        self.vocab_size = self._model.vocab_size
        self.chat_template = self._model.chat_template()

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends a reply."""
        return frozenset(t for t in range(self.vocab_size) if self._model.is_end(t))

    def encode(self, text: str, *, parse_special: bool) -> NDArray[np.int32]:
        return self._model.tokenize(text, add_special=True, parse_special=parse_special)

    def decode(self, tokens: Sequence[int]) -> str:
        from qwen3q.llama.text import detokenize

        return detokenize(self._model, list(tokens))

    def spell(self, tokens: Sequence[int]) -> str:
        model = self._model
        pieces = [model.piece(token) or model.token_text(token).encode() for token in tokens]
        return b"".join(pieces).decode("utf-8", "replace")


def open_codec(artefact: Artefact) -> TextCodec:
    """The tokenizer of ``artefact``."""
    return GgufCodec(artefact) if artefact.is_gguf else FolderCodec(artefact)


def require_same_tokenizer(reference: Artefact, artefact: Artefact) -> None:
    """Tokens compare only within one vocabulary.

    Raises:
        ModelError: the two tokenizers differ.
    """
    if artefact.tokenizer != reference.tokenizer:
        raise ModelError(
            f"{artefact.name} has another tokenizer than the reference {reference.name}.",
            "Measure an artefact against the float model it was made from.",
        )
