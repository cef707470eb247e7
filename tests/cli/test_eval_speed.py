"""``qwen3q eval speed`` as a user runs it."""

from __future__ import annotations

import json

import pytest

from qwen3q.models.source import resolve
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.quantize.run import QuantizeOptions, quantize_gguf

SHORT = ("--prompt", "16", "--generate", "2", "--repeats", "1", "--threads", "1")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ggufs")
    (made,) = quantize_gguf(
        resolve("demo"), [FILE_TYPES["Q8_0"]], folder, QuantizeOptions(threads=2)
    )
    return made.path


def test_a_file_and_a_folder_by_batch_and_depth(cli, gguf, tmp_path):
    bench, rows = tmp_path / "bench.json", tmp_path / "rows"
    shape = ("--batch", "1", "--batch", "2", "--depth", "0", "--depth", "20")
    arguments = ("--device", "cpu", "--out", bench, "--contribute", rows, "--json")
    done = cli("eval", "speed", gguf, "demo", *SHORT, *shape, *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tests = [(r["engine"], r["phase"], r["batch"], r["depth"]) for r in report["speed"]]
    assert len(set(tests)) == len(tests) == 2 * 2 * 2 * 2
    assert all(set(row["predicted"]) >= {"tokens_per_second"} for row in report["speed"])
    assert [row["engine"] for row in report["memory"]] == ["llama.cpp", "torch"]
    assert report["memory"][0]["batch"] == 2
    assert "OPENMP" in report["machine"]["build"] or "CPU" in report["machine"]["build"]
    assert any("No release of Qwen3" in line for line in report["notes"])
    assert not rows.exists()
    named = json.loads(bench.read_text())
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in named] == [
        (16, 0, 0), (16, 0, 20), (0, 2, 0), (0, 2, 20)
    ]  # fmt: skip


def test_the_tables_say_what_was_predicted(cli, gguf):
    done = cli("eval", "speed", gguf, *SHORT)
    assert done.returncode == 0, done.stderr
    for words in ("prefill 16", "decode 2", "predicted", "KV cache", "16 tokens"):
        assert words in done.stdout
    measured, predicted = (
        next(line for line in done.stdout.splitlines() if word in line).split("│")[2:5]
        for word in ("16 tokens", "│ predicted")
    )
    assert measured == predicted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--batch", "0"), "batch of 0"), (("--depth", "-1"), "depth of -1")],
)
def test_senseless_shapes_are_refused(cli, gguf, arguments, says):
    done = cli("eval", "speed", gguf, *SHORT, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
