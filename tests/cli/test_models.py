"""The catalog verb against figures that Qwen and the configs publish."""

from __future__ import annotations

import json
import sys

import pytest

from qwen3q.cli.app import main
from qwen3q.models.catalog import catalog

PUBLISHED = {
    # layers, query heads, key and value heads, from Qwen's model cards
    "qwen3-0.6b": (28, 16, 8),
    "qwen3-1.7b": (28, 16, 8),
    "qwen3-4b": (36, 32, 8),
    "qwen3-8b": (36, 32, 8),
    "qwen3-14b": (40, 40, 8),
    "qwen3-32b": (64, 64, 8),
    "qwen3-30b-a3b": (48, 32, 4),
    "qwen3-235b-a22b": (94, 64, 4),
    "qwen3-coder-480b-a35b": (62, 96, 8),
}


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwen3q", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


def test_json_has_every_release_with_published_shapes(run):
    code, out, _ = run("models", "--json")
    assert code == 0
    models = {model["name"]: model for model in json.loads(out)["models"]}
    assert len(models) == 13
    for name, (layers, heads, kv_heads) in PUBLISHED.items():
        found = models[name]
        assert (found["layers"], found["heads"], found["kv_heads"]) == (layers, heads, kv_heads)
    assert models["qwen3-8b"]["bf16_bytes"] == 16381470720
    assert models["qwen3-30b-a3b"]["active_parameters"] == 3353032704
    assert models["qwen3-0.6b"]["kv_bytes_per_token_f16"] == 114688


def test_table_has_a_line_for_each_release(run):
    code, out, _ = run("models")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 1 + len(catalog())
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80
    (line,) = [line for line in lines if line.startswith("qwen3-8b ")]
    columns = "qwen3-8b  8.19 B  8.19 B  36  32/8  40960  16.38 GB"
    assert line.split() == columns.split()


def test_one_release_by_any_of_its_names(run):
    for name in ("qwen3-4b-2507", "Qwen/Qwen3-4B-Thinking-2507"):
        code, out, _ = run("models", name)
        assert code == 0
        assert "Qwen/Qwen3-4B-Instruct-2507, Qwen/Qwen3-4B-Thinking-2507" in out
        assert "4,022,468,096" in out
    assert json.loads(run("models", "8b", "--json")[1])["title"] == "Qwen3-8B"


def test_experts_are_in_the_details(run):
    _, out, _ = run("models", "qwen3-30b-a3b")
    assert "128 experts, 8 active, 768 inner" in out


def test_explanation_names_exactly_the_releases_where_it_matters(run):
    _, out, _ = run("models", "--explain")
    explanation = out.split("\n\n", 1)[1]
    named = {line.split()[0] for line in explanation.splitlines() if "heads x 128 =" in line}
    equal = {"qwen3-1.7b", "qwen3-8b", "qwen3-14b"}
    assert named == {release.name for release in catalog()} - equal
    assert max(map(len, out.splitlines())) <= 80
    assert "57,344 bytes per token in f16 in place of 114,688" in explanation


def test_explanation_of_a_release_where_it_does_not_matter(run):
    _, out, _ = run("models", "qwen3-8b", "--explain")
    assert "32 heads x 128 happens to be hidden_size, 4096" in out


def test_unknown_release(run):
    code, out, err = run("models", "qwen3-9b")
    assert code == 1
    assert not out
    assert err.startswith("qwen3q: There is no model 'qwen3-9b'.\nDid you mean qwen3-8b")
