"""Needles with YaRN beside the own RoPE: the same logits as transformers, and told-apart rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from continuing import continued

from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendKind, BackendOptions, open_backend
from qwen3q.evaluate.gate_run import GateOptions, run_gate
from qwen3q.evaluate.gate_tables import gate_tables
from qwen3q.evaluate.resume import Kept
from qwen3q.evaluate.tables import markdown
from qwen3q.evaluate.tasks import Level

CONTEXT, FACTOR = 96, 4.0


def logits_of(name: str, chunks: np.ndarray, yarn: float | None) -> np.ndarray:
    options = BackendOptions(threads=1, device="cpu", yarn=yarn)
    with open_backend(find_artefact(name), options, CONTEXT) as backend:
        return np.concatenate([values.copy() for _, values in backend.logits(chunks, 0)])


@pytest.fixture(scope="module")
def extended_logits(demo_folder):
    """transformers' with YaRN in the config, over chunks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    chunks = np.random.default_rng(5).integers(0, 8000, (2, CONTEXT)).astype(np.int32)
    config = AutoConfig.from_pretrained(demo_folder)
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": FACTOR,
        "original_max_position_embeddings": 2048,
    }
    model = AutoModelForCausalLM.from_pretrained(demo_folder, config=config, dtype=torch.float32)
    with torch.inference_mode():
        rows = model(torch.from_numpy(chunks).long()).logits[:, :-1].flatten(0, 1)
    return chunks, rows.numpy()


def test_logits_with_yarn_are_transformers(extended_logits, demo_ggufs):
    chunks, expected = extended_logits
    ours = logits_of("demo", chunks, FACTOR)
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    # llama.cpp keeps keys and values in 16 bits
    llama = logits_of(str(demo_ggufs["F32"]), chunks, FACTOR)
    np.testing.assert_allclose(llama, expected, atol=5e-2)
    assert np.abs(logits_of("demo", chunks, None) - expected).max() > 0.5


def test_answers_with_yarn_are_transformers(demo_folder, demo_ggufs):
    """The decoding path has its own rotary table."""
    prompt = np.random.default_rng(6).integers(0, 8000, 60)
    for name in ("demo", str(demo_ggufs["F32"])):
        options = BackendOptions(threads=1, device="cpu", yarn=FACTOR)
        with open_backend(find_artefact(name), options, CONTEXT) as backend:
            made = continued(backend, prompt.tolist(), 8)
            chunks = np.array([[*prompt, *made]], np.int32)
        likeliest = logits_of(name, chunks, FACTOR).argmax(axis=1)[len(prompt) - 1 :]
        assert made == likeliest.tolist()


def test_rows_tell_the_rope(demo_ggufs):
    options = GateOptions(
        Level.BASIC, each=1, needle_words=60, needle_yarn=FACTOR, max_tokens=4, samples=2
    )
    files = [find_artefact(str(demo_ggufs[kind])) for kind in ("BF16", "Q8_0")]
    rows = run_gate(files[0], files[1:], options, BackendOptions(threads=1))
    told = [(row["format"], row["set"], row["rope"], row["mode"]) for row in rows]
    assert len(set(told)) == len(told) == 12
    for kind in ("gguf:BF16", "gguf:Q8_0"):
        for mode in ("thinking", "plain"):
            for name, rope in (("questions", "own"), ("needles", "own"), ("needles", "yarn 4")):
                assert (kind, name, rope, mode) in told
    needles = [row for row in rows if row["set"] == "needles"]
    assert all(row["by_kind"].keys() == {"needle"} for row in needles)
    assert all((row["questions"], row["replies"]) == (1, 2) for row in needles)
    assert json.loads(json.dumps(rows)) == rows
    tables = dict(gate_tables({"gate": rows}))
    assert len(tables) == 4
    text = markdown(tables["Needles in 60 words with thinking"])
    assert text.count("| yarn 4 |") == text.count("| own |") == 2


def test_needles_beyond_what_a_model_was_trained_on(tmp_path):
    demo, backend = find_artefact("demo"), BackendOptions(threads=1, device="cpu")
    options = GateOptions(Level.BASIC, each=1, needle_words=2000, max_tokens=2)
    kept = Kept(tmp_path)
    rows = run_gate(demo, [], options, backend, kept=kept)
    assert {row["set"] for row in rows} == {"questions"}
    (told,) = kept.notes
    assert "was trained on 2,048: not asked" in told
    for fits in (replace(options, needle_words=300), replace(options, needle_yarn=2.0)):
        kept = Kept(tmp_path)
        assert "needles" in {row["set"] for row in run_gate(demo, [], fits, backend, kept=kept)}
        assert not kept.notes


def test_yarn_where_it_can_not_be():
    options = BackendOptions(threads=1, device="cpu")
    demo = find_artefact("demo")
    with pytest.raises(UsageError, match="none are asked for"):
        run_gate(demo, [], GateOptions(needle_yarn=2), options)
    with pytest.raises(UsageError, match="--needle-yarn 9 is outside"):
        run_gate(demo, [], GateOptions(needle_words=9, needle_yarn=9), options)


def test_a_model_that_has_yarn_is_not_extended_again(tmp_path):
    from qwen3q.models.source import resolve
    from qwen3q.plan.gguf_types import file_type
    from qwen3q.quantize.run import QuantizeOptions, quantize_gguf

    made = quantize_gguf(resolve("demo"), [file_type("Q8_0")], tmp_path, QuantizeOptions(yarn=4.0))
    file = find_artefact(str(made[0].path))
    for kind in ("llama", "torch"):
        with pytest.raises(UsageError, match="has YaRN already"):
            open_backend(file, BackendOptions(BackendKind(kind), device="cpu", yarn=2.0), 64)
