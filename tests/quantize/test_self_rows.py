"""Text that the demo writes for itself, in llama.cpp."""

from __future__ import annotations

from qwen3q.calibrate.load import CalibrationOptions
from qwen3q.models.source import resolve
from qwen3q.models.tokenizer import load_tokenizer
from qwen3q.quantize.self_rows import self_rows


def test_demo_writes_its_own_sums():
    """Trained on sums in chats, it asks and answers them; a second run writes the same."""
    source = resolve("demo")
    assert source.folder is not None
    tokenizer = load_tokenizer(source.folder)
    options = CalibrationOptions(samples=2, length=96, seed=5)
    made = self_rows(source, options, threads=1)
    text = tokenizer.decode([t for row in made.rows for t in row], skip_special_tokens=False)
    assert "<|im_start|>user\n" in text
    assert "<|im_start|>assistant\n" in text
    assert [len(row) for row in made.rows] == [96, 96]
    assert self_rows(source, options, threads=1).rows == made.rows
