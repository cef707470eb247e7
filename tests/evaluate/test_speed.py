"""Speed runs: what is run and how it is told; never how fast."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from qwen3q.errors import UsageError
from qwen3q.evaluate import speed_torch, torch_generate
from qwen3q.evaluate.speed import llama_bench_row, measure_speed
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_run import run_speed
from qwen3q.evaluate.speed_tables import speed_series, speed_table
from qwen3q.evaluate.speed_tests import Phase, Planned, SpeedTest, speed_row
from qwen3q.llama import context
from qwen3q.llama.capi import has_amx
from qwen3q.llama.model import LlamaModel

OPTIONS = SpeedOptions(prompts=(16,), generate=4, depths=(0, 24), repeats=2, threads=1)
BATCHED = SpeedOptions(prompts=(900,), generate=2, depths=(5,), repeats=1, threads=1, batches=(3,))


@pytest.fixture(scope="module")
def model(demo_ggufs):
    with LlamaModel(demo_ggufs["Q8_0"]) as loaded:
        yield loaded


@pytest.fixture
def decoded(monkeypatch):
    """Sequences, positions and tokens with logits of every call into llama.cpp."""
    calls = []
    batch, one = context.LlamaContext.decode, context.LlamaContext.decode_one

    def decode(self, tokens, positions, *, sequences=0, outputs=False, **more):
        parts = (np.broadcast_to(part, len(tokens)) for part in (sequences, positions, outputs))
        calls.append([tuple(map(int, row)) for row in zip(*parts, strict=True)])
        return batch(self, tokens, positions, sequences=sequences, outputs=outputs, **more)

    def decode_one(self, token, position):
        calls.append([(0, position, 1)])
        return one(self, token, position)

    monkeypatch.setattr(context.LlamaContext, "decode", decode)
    monkeypatch.setattr(context.LlamaContext, "decode_one", decode_one)
    return calls


def test_every_repeat_starts_at_the_depth(model, decoded):
    tests = [m.test for m in measure_speed(model, OPTIONS)]
    assert [t.planned for t in tests] == [
        Planned(Phase.PREFILL, 16, 0, 1),
        Planned(Phase.PREFILL, 16, 24, 1),
        Planned(Phase.DECODE, 4, 0, 1),
        Planned(Phase.DECODE, 4, 24, 1),
    ]
    spans = [(len(call), call[0][1]) for call in decoded]
    prefill = [(16, 0)] * 3 + [(24, 0)] + [(16, 24)] * 3
    four = [(1, 0), (1, 1), (1, 2), (1, 3)]
    decode = [(1, 0), *four, *four]
    deep = [(n, p + 24) for n, p in decode]
    assert spans == [*prefill, *decode, (24, 0), *deep]
    assert {len(t.samples) for t in tests} == {2}
    assert [len(t.token_times) for t in tests] == [0, 0, 8, 8]
    assert sum(tests[3].token_times) == sum(tests[3].samples)
    assert all(t.peak_bytes is None or t.peak_bytes > model.nbytes for t in tests)


def test_sequences_are_read_whole_and_decoded_in_step(model, decoded):
    prefill, decode = (m.test for m in measure_speed(model, BATCHED))
    depth = [(s, p, int(p == 4)) for s in range(3) for p in range(5)]
    prompts = [(s, p, int(p == 904)) for s in range(3) for p in range(5, 905)]
    read = [prompts[:2048], prompts[2048:]]
    steps = [[(s, p, 1) for s in range(3)] for p in (5, 6)]
    assert decoded == [depth, *read, *read, depth, steps[0], *steps]
    assert prefill.rates == [3 * 900 * 1e9 / prefill.samples[0]]
    assert decode.rates == [3 * 2 * 1e9 / decode.samples[0]]
    assert len(decode.token_times) == 2


def test_figures_follow_from_the_times():
    times = (20_000_000, 10_000_000, 40_000_000)
    test = SpeedTest(Planned(Phase.DECODE, 2, 0, 1), times, (10_000_000,) * 6, 5)
    row = speed_row(test)
    assert row["tokens_per_second"] == pytest.approx(100)
    assert row["tokens_per_second_mean"] == pytest.approx((100 + 200 + 50) / 3)
    assert row["tokens_per_second_stddev"] == pytest.approx(76.376, rel=1e-4)
    assert row["latency_ms"] == {"p50": 10, "p95": 10, "p99": 10}
    prefill = speed_row(SpeedTest(Planned(Phase.PREFILL, 8, 3, 4), (2_000_000,)))
    assert prefill["first_token_ms"] == 2
    assert prefill["tokens_per_second"] == pytest.approx(16_000)
    report = {"speed": [{"artefact": "a"} | row, {"artefact": "a"} | prefill]}
    table = speed_table(report)
    assert [cells[2] for cells in table.rows] == ["decode 2", "prefill 8 × 4 at depth 3"]


def test_a_curve_holds_all_else_at_its_smallest():
    def point(tokens, depth, batch, rate):
        planned = Planned(Phase.PREFILL, tokens, depth, batch)
        test = SpeedTest(planned, (round(1e9 * tokens * batch / rate),))
        return {"artefact": "a"} | speed_row(test)

    rows = [point(64, 0, 1, 50), point(8, 0, 1, 40), point(8, 9, 1, 30), point(8, 0, 4, 60)]
    report = {"speed": rows}
    for along, expected in (
        ("tokens", [(8, 40), (64, 50)]),
        ("depth", [(0, 40), (9, 30)]),
        ("batch", [(1, 40), (4, 60)]),
    ):
        points = speed_series(report, "prefill", along)["a"]
        assert [(p["x"], round(p["value"])) for p in points] == expected
    assert speed_series({"speed": rows[:1]}, "prefill", "tokens") == {}


@pytest.mark.parametrize(
    "options",
    [
        SpeedOptions(prompts=(0,)),
        SpeedOptions(depths=(-1,)),
        SpeedOptions(repeats=0),
        SpeedOptions(batches=(0,)),
    ],
)
def test_senseless_tests_are_refused(model, options):
    with pytest.raises(UsageError):
        list(measure_speed(model, options))


@pytest.mark.peer
def test_names_and_kinds_are_llama_benchs(model, llama_tools):
    repack = "0" if has_amx() else "1"
    command = [llama_tools / "llama-bench", "-m", model.path, "--repack", repack, "-t", "1"]
    command += ["-p", "16", "-n", "4", "-r", "2", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)
    measured = [m.test for m in measure_speed(model, OPTIONS)]
    ours = [llama_bench_row(model, test, OPTIONS) for test in measured if not test.planned.depth]
    for mine, reference in zip(ours, theirs, strict=True):
        assert {k: type(v) for k, v in mine.items()} == {k: type(v) for k, v in reference.items()}
        measured_anew = {"build_commit", "build_number", "test_time"} | {
            f"{part}_{unit}" for part in ("avg", "stddev", "samples") for unit in ("ns", "ts")
        }
        for key in set(reference) - measured_anew:
            assert mine[key] == reference[key], key


def test_no_table_of_angles_is_made_while_decoding_is_timed(demo, monkeypatch):
    made, times = [], []
    table, clock = torch_generate.rope_table, speed_torch.perf_counter_ns
    monkeypatch.setattr(
        torch_generate, "rope_table", lambda *a: made.append(len(times)) or table(*a)
    )
    monkeypatch.setattr(speed_torch, "perf_counter_ns", lambda: times.append(made[:]) or clock())
    run_speed(demo, replace(OPTIONS, prompts=(), generate=80, depths=(0,)), device="cpu")
    assert len(times) == 2 * 81 + 2
    assert all(before == times[0] for before in times)
