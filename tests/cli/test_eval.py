"""``qwen3q eval``: what it prints, and what it refuses."""

from __future__ import annotations

import json

import pytest

from qwen3q.evaluate.perplexity import measure_perplexity
from qwen3q.llama.model import LlamaModel


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "numbers"
    path.write_text(" ".join(str(number) for number in range(400)))
    return path


def test_perplexity_prints_everything_it_depends_on(cli, demo_gguf, text):
    arguments = ["--text", text, "--chunks", 2, "--context", 128, "--threads", 1]
    run = cli("eval", "perplexity", demo_gguf, *arguments, "--json")
    assert run.returncode == 0, run.stderr
    (result,) = json.loads(run.stdout)["results"]
    with LlamaModel(demo_gguf) as model:
        ours = measure_perplexity(model, text.read_text(), context=128, max_chunks=2, threads=1)
    assert result["perplexity"] == pytest.approx(ours.perplexity, rel=1e-6)
    assert result["tokens"] == 2 * 63
    assert result["scored"] == "half"
    assert result["add_bos"] is False
    table = cli("eval", "perplexity", demo_gguf, *arguments)
    assert f"{ours.perplexity:.4f}" in table.stdout


def test_the_built_in_text_is_read_with_its_markup(cli, demo_gguf):
    run = cli("eval", "perplexity", demo_gguf, "--chunks", 1, "--threads", 1, "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["text"] == "built-in"
    assert report["results"][0]["parse_special"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.gguf", "--text", "{text}"], 1, "no GGUF file at none.gguf"),
        (["demo:Q4", "--text", "{text}"], 2, "'Q4' is no GGUF file type"),
        (["qwen3-8b", "--text", "{text}"], 2, "qwen3-8b names no GGUF file"),
        (["{gguf}", "--text", "none.txt"], 2, "Can't read none.txt"),
        (["{gguf}", "--text", "{text}", "--context", "99999"], 2, "less than one chunk"),
        (["{gguf}", "--text", "{text}", "--cache-type", "q3"], 2, "'q3' is no type"),
    ],
)
def test_bad_input_is_one_sentence(cli, demo_gguf, text, arguments, code, message):
    run = cli("eval", "perplexity", *(a.format(gguf=demo_gguf, text=text) for a in arguments))
    assert run.returncode == code
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
