"""A GGUF file loaded by llama.cpp: its weights, its vocabulary and its metadata."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3q.closing import Closing
from qwen3q.errors import LlamaError
from qwen3q.formats.gguf_model import check_gguf
from qwen3q.llama.capi import collect_log, has_amx, lib, log

_LONGEST_PIECE = 256
_LONGEST_VALUE = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        gpu_layers: layers on the GPU, the output layer counted; negative for all.
        vocab_only: load no weights, for tokenizing alone.
    """

    gpu_layers: int = -1
    vocab_only: bool = False


class LlamaModel(Closing):
    """A loaded model. Close it, or use it in a ``with``; contexts made from it must go first."""

    def __init__(self, path: Path, options: LoadOptions | None = None) -> None:
        """Loads ``path``, with its other parts if it is the first of a split file.

        Raises:
            LlamaError: no such file, or llama.cpp refuses it; carries its reason.
            CheckpointError, ModelError: llama.cpp would end the process over it.
        """
        if not path.is_file():
            raise LlamaError(f"There is no GGUF file at {path}.")
        options = options or LoadOptions()
        if not options.vocab_only:
            check_gguf(path)
        collect_log()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.gpu_layers
        params.vocab_only = options.vocab_only
        params.use_extra_bufts = not has_amx()
        since = log.line_count
        handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise LlamaError(
                f"llama.cpp can't load {path}: {log.reason(since)}.",
                "The file may be incomplete or for another version of llama.cpp.",
            )
        self.path = path
        self.options = options
        self.handle = handle
        vocab = lib.llama_model_get_vocab(handle)
        assert vocab is not None
        self.vocab = vocab
        self.vocab_size = int(lib.llama_vocab_n_tokens(vocab))
        self.hidden_size = int(lib.llama_model_n_embd(handle))
        self.train_context = int(lib.llama_model_n_ctx_train(handle))
        self.nbytes = int(lib.llama_model_size(handle))
        self.parameters = int(lib.llama_model_n_params(handle))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(vocab))
        self.bos = int(lib.llama_vocab_bos(vocab))
        self.eos = int(lib.llama_vocab_eos(vocab))

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> NDArray[np.int32]:
        """Token ids of ``text``, int32 ``[tokens]``.

        Args:
            add_special: put BOS or EOS where the model's metadata asks for them.
            parse_special: read ``<|im_start|>`` and the like as their token, not as text.
        """
        raw = text.encode("utf-8", "replace")
        # byte-level BPE never makes more tokens than bytes
        tokens = np.empty(len(raw) + 2, np.int32)
        count = lib.llama_tokenize(
            self.vocab,
            raw,
            len(raw),
            tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            len(tokens),
            add_special,
            parse_special,
        )
        if count < 0:
            raise LlamaError(f"llama.cpp can't tokenize a text of {len(raw)} bytes.")
        return tokens[:count].copy()

    def piece(self, token: int) -> bytes:
        """The bytes of one token, which may end inside a character; none for control tokens."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        length = lib.llama_token_to_piece(self.vocab, token, buffer, _LONGEST_PIECE, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self.vocab, token, buffer, -length, 0, False)
        return buffer.raw[:length]

    def token_text(self, token: int) -> str:
        """How the vocabulary spells ``token``, such as ``<|im_end|>``; empty for none (-1)."""
        if token < 0:
            return ""
        return str(lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def is_end(self, token: int) -> bool:
        """Whether generation ends with this token: ``<|im_end|>``, ``<|endoftext|>`` and others."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def special_token(self, text: str) -> int | None:
        """The id of ``text`` if it is one token of its own, such as ``<think>``."""
        tokens = self.tokenize(text, parse_special=True)
        return int(tokens[0]) if len(tokens) == 1 else None

    def metadata(self, key: str) -> str | None:
        """A scalar of the file's metadata as text, such as ``general.name``; None if absent."""
        buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
        length = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length >= 0 else None

    def chat_template(self) -> str | None:
        """The Jinja source of ``tokenizer.chat_template``, or None."""
        raw = lib.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw else None

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a cache in 16 bits, all layers."""
        architecture = self.metadata("general.architecture")
        told = self.metadata(f"{architecture}.attention.key_length")
        head_dim = int(told or self.hidden_size // int(lib.llama_model_n_head(self.handle)))
        heads = int(lib.llama_model_n_head_kv(self.handle))
        return 2 * 2 * int(lib.llama_model_n_layer(self.handle)) * heads * head_dim

    def close(self) -> None:
        """Frees the model; calling it again does nothing."""
        if self.handle:
            lib.llama_model_free(self.handle)
            self.handle = None
