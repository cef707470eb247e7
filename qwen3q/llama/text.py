"""Tokens back to text, one at a time."""

from __future__ import annotations

import codecs

from qwen3q.llama.model import LlamaModel


class TextStream:
    """Turns tokens into text as they come; a character split over tokens waits for its last byte.

    Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that ``token`` completes, perhaps none."""
        return self._decoder.decode(self._model.piece(token))

    def finish(self) -> str:
        """What is left of a character that was cut off."""
        return self._decoder.decode(b"", final=True)


def detokenize(model: LlamaModel, tokens: list[int]) -> str:
    """The text of ``tokens``, without control tokens."""
    stream = TextStream(model)
    return "".join([stream.feed(token) for token in tokens]) + stream.finish()
