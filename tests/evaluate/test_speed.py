"""Speed runs: what is run and how it is told; never how fast."""

from __future__ import annotations

import json
import subprocess

import pytest

from qwen3q.errors import UsageError
from qwen3q.evaluate.speed import Phase, SpeedTest, llama_bench_row, measure_speed, speed_row
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_tables import speed_series, speed_table
from qwen3q.llama import context
from qwen3q.llama.model import LlamaModel

OPTIONS = SpeedOptions(prompts=(16,), generate=4, depths=(0, 24), repeats=2, threads=2)


@pytest.fixture(scope="module")
def model(demo_ggufs):
    with LlamaModel(demo_ggufs["Q8_0"]) as loaded:
        yield loaded


@pytest.fixture
def decoded(monkeypatch):
    """Positions of every call that the tests make into llama.cpp."""
    calls = []
    batch, one = context.LlamaContext.decode, context.LlamaContext.decode_one

    def decode(self, tokens, positions, **more):
        calls.append((len(tokens), int(positions[0])))
        return batch(self, tokens, positions, **more)

    def decode_one(self, token, position):
        calls.append((1, position))
        return one(self, token, position)

    monkeypatch.setattr(context.LlamaContext, "decode", decode)
    monkeypatch.setattr(context.LlamaContext, "decode_one", decode_one)
    return calls


def test_every_repeat_starts_at_the_depth(model, decoded):
    tests = list(measure_speed(model, OPTIONS))
    assert [(t.phase, t.tokens, t.depth) for t in tests] == [
        (Phase.PREFILL, 16, 0),
        (Phase.PREFILL, 16, 24),
        (Phase.DECODE, 4, 0),
        (Phase.DECODE, 4, 24),
    ]
    prefill = [(16, 0)] * 3 + [(24, 0)] + [(16, 24)] * 3
    four = [(1, 0), (1, 1), (1, 2), (1, 3)]
    decode = [(1, 0), *four, *four]
    deep = [(n, p + 24) for n, p in decode]
    assert decoded == [*prefill, *decode, (24, 0), *deep]
    assert {len(t.samples) for t in tests} == {2}
    assert [len(t.token_times) for t in tests] == [0, 0, 8, 8]
    assert sum(tests[3].token_times) == sum(tests[3].samples)
    assert all(t.peak_bytes is None or t.peak_bytes > model.nbytes for t in tests)


def test_figures_follow_from_the_times():
    test = SpeedTest(Phase.DECODE, 2, 0, (20_000_000, 10_000_000, 40_000_000), (10_000_000,) * 6, 5)
    row = speed_row(test)
    assert row["tokens_per_second"] == pytest.approx(100)
    assert row["tokens_per_second_mean"] == pytest.approx((100 + 200 + 50) / 3)
    assert row["tokens_per_second_stddev"] == pytest.approx(76.376, rel=1e-4)
    assert row["latency_ms"] == {"p50": 10, "p95": 10, "p99": 10}
    prefill = speed_row(SpeedTest(Phase.PREFILL, 8, 3, (2_000_000,), (), None))
    assert prefill["first_token_ms"] == 2
    report = {"speed": [{"artefact": "a"} | row, {"artefact": "a"} | prefill]}
    table = speed_table(report)
    assert [cells[1] for cells in table.rows] == ["decode 2", "prefill 8 at depth 3"]
    assert [p["x"] for p in speed_series(report, "decode")["a"]] == [0]


@pytest.mark.parametrize(
    "options",
    [SpeedOptions(prompts=(0,)), SpeedOptions(depths=(-1,)), SpeedOptions(repeats=0)],
)
def test_senseless_tests_are_refused(model, options):
    with pytest.raises(UsageError):
        list(measure_speed(model, options))


@pytest.mark.peer
def test_names_and_kinds_are_llama_benchs(model, llama_tools):
    command = [llama_tools / "llama-bench", "-m", model.path, "--repack", "0", "-t", "2"]
    command += ["-p", "16", "-n", "4", "-r", "2", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    ours = [
        llama_bench_row(model, t, OPTIONS) for t in measure_speed(model, OPTIONS) if not t.depth
    ]
    for mine, reference in zip(ours, theirs, strict=True):
        assert set(mine) <= set(reference)
        assert {k: type(v) for k, v in mine.items()} == {k: type(reference[k]) for k in mine}
        for key in ("model_type", "model_size", "model_n_params", "n_prompt", "n_gen", "n_depth"):
            assert mine[key] == reference[key], key
