"""Predictions beside measurements: equal to llama.cpp's own account, and to the estimator's."""

from __future__ import annotations

import pytest

from qwen3q.evaluate import predicted
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.predicted import Estimator, known_gpus
from qwen3q.evaluate.speed import Measured
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.speed_run import memory_rows, run_speed
from qwen3q.evaluate.speed_tables import memory_table, speed_table
from qwen3q.evaluate.speed_tests import Phase, Planned, SpeedTest
from qwen3q.llama.breakdown import DeviceBuffers
from qwen3q.memory.estimate import estimate
from qwen3q.memory.gpus import find_gpu
from qwen3q.memory.settings import Engine, Settings
from qwen3q.memory.weights import release_weights
from qwen3q.models.catalog import find_release
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FILE_TYPES

RELEASE = find_release("qwen3-8b")
BANDWIDTH = 50e9


def estimator(*gpus: str, gpu_layers: int | None = None) -> Estimator:
    weights = release_weights(RELEASE, "gguf:Q4_K_M")
    return Estimator(RELEASE.config, weights, 512, gpu_layers, known_gpus(gpus), BANDWIDTH)


@pytest.mark.parametrize(
    ("depth", "batch", "kind"), [(0, 1, "Q8_0"), (300, 3, "Q4_K_M"), (1, 8, "F32")]
)
def test_measured_buffers_are_the_predicted_ones(demo_ggufs, depth, batch, kind):
    options = SpeedOptions((40,), 2, (depth,), 1, 2, (batch,))
    run = run_speed(find_artefact(str(demo_ggufs[kind])), options)
    (row,) = run.memory
    assert (row["device"], row["context"], row["batch"]) == ("CPU", 40 + depth, batch)
    for part in ("weights", "kv", "compute"):
        assert row[f"{part}_bytes"] == row["predicted"][f"{part}_bytes"] > 0
    assert [r["engine"] for r in run.rows] == ["llama.cpp"] * 2


def test_the_largest_test_is_the_row_of_memory(demo_ggufs):
    options = SpeedOptions((16,), 2, (0, 600), 1, 2, (1, 2))
    (row,) = run_speed(find_artefact(str(demo_ggufs["Q8_0"])), options).memory
    assert (row["context"], row["batch"]) == (616, 2)


def test_decode_on_a_cpu_is_bounded_by_reading_weights_and_cache():
    planned = Planned(Phase.DECODE, 64, 1000, 4)
    config = RELEASE.config
    tensors = plan_gguf(RELEASE.title, config, FILE_TYPES["Q4_K_M"]).tensors
    read = sum(tensor.nbytes for tensor in tensors if tensor.name != "token_embd.weight")
    layer = 2 * 2 * config.num_key_value_heads * config.head_dim
    step = read + 4 * (1000 + 32) * config.num_hidden_layers * layer
    speed = estimator().speed(planned)
    assert speed["bound_tokens_per_second"] == pytest.approx(4 * BANDWIDTH / step, rel=1e-5)
    assert speed["tokens_per_second"] is speed["band"] is None
    prefill = estimator().speed(Planned(Phase.PREFILL, 512, 0, 1))
    assert set(prefill.values()) == {None}


def test_a_model_that_fits_the_processors_cache_has_no_bound(monkeypatch):
    monkeypatch.setattr(predicted, "last_level_cache", lambda: 1 << 40)
    speed = estimator().speed(Planned(Phase.DECODE, 64, 0, 1))
    assert speed["bound_tokens_per_second"] is None


def test_speed_on_a_known_gpu_is_the_estimators():
    gpu = find_gpu("RTX 4090")
    run = estimate(
        "", RELEASE.config, release_weights(RELEASE, "gguf:Q4_K_M"), Engine.LLAMA_CPP,
        Settings(1056), [gpu],
    )  # fmt: skip
    ours = estimator("NVIDIA GeForce RTX 4090")
    decode = ours.speed(Planned(Phase.DECODE, 64, 1024, 1))
    assert decode["tokens_per_second"] == pytest.approx(run.speed.decode_full)
    assert decode["band"] == run.speed.band
    prefill = ours.speed(Planned(Phase.PREFILL, 512, 0, 1))
    assert prefill["tokens_per_second"] == run.speed.prefill


@pytest.mark.parametrize(
    ("gpu", "planned"),
    [
        ("NVIDIA GeForce RTX 4090", Planned(Phase.DECODE, 64, 0, 2)),
        ("NVIDIA GeForce RTX 4090", Planned(Phase.PREFILL, 512, 9, 1)),
        ("NVIDIA GeForce RTX 4090", Planned(Phase.PREFILL, 100, 0, 1)),
        ("A card that nobody knows", Planned(Phase.DECODE, 64, 0, 1)),
    ],
)
def test_what_the_rule_does_not_cover_is_not_predicted(gpu, planned):
    assert set(estimator(gpu).speed(planned).values()) == {None}


def test_devices_are_paired_in_order_with_the_cpu_last():
    planned = Planned(Phase.DECODE, 64, 0, 1)
    ours = estimator("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090")
    buffers = (
        DeviceBuffers("CUDA0", 1, 2, 3),
        DeviceBuffers("CUDA1", 4, 5, 6),
        DeviceBuffers("CPU", 7, 8, 9),
    )
    test = SpeedTest(planned, (1,), (1,), peak_bytes=1000, device_bytes=2000)
    rows = memory_rows(Measured(test, buffers), ours, before=900)
    assert [row["device"] for row in rows] == ["CUDA0", "CUDA1", "CPU"]
    assert [row["rest_bytes"] for row in rows] == [None, None, 76]
    expected = ours.memory(planned)
    assert [row["predicted"]["weights_bytes"] for row in rows] == [d.weights for d in expected]
    assert rows[0]["predicted"]["rest_bytes"] == expected[0].overhead > 0


def test_devices_that_the_estimator_did_not_expect_are_measured_all_the_same():
    buffers = (DeviceBuffers("CUDA0", 0, 0, 3), DeviceBuffers("CPU", 7, 8, 9))
    test = SpeedTest(Planned(Phase.DECODE, 64, 0, 1), (1,), (1,))
    rows = memory_rows(Measured(test, buffers), estimator(gpu_layers=0), before=None)
    assert [(row["device"], row["compute_bytes"]) for row in rows] == [("CUDA0", 3), ("CPU", 9)]
    assert [row["predicted"] for row in rows] == [None, None]


def test_one_gpus_rest_is_what_nvml_has_beyond_the_buffers():
    planned = Planned(Phase.DECODE, 64, 0, 1)
    buffers = (DeviceBuffers("CUDA0", 100, 20, 3), DeviceBuffers("CPU", 7, 8, 9))
    test = SpeedTest(planned, (1,), (1,), device_bytes=523)
    first, host = memory_rows(Measured(test, buffers), estimator("RTX 4090"), before=None)
    assert first["rest_bytes"] == 400
    assert host["rest_bytes"] is None


def test_a_folder_is_timed_in_torch_without_a_prediction():
    options = SpeedOptions((24,), 3, (0, 30), 2, 2, (1, 2))
    run = run_speed(find_artefact("demo"), options, device="cpu")
    assert {row["engine"] for row in run.rows} == {"torch"}
    assert [(row["phase"], row["depth"], row["batch"]) for row in run.rows[4:]] == [
        ("decode", 0, 1), ("decode", 30, 1), ("decode", 0, 2), ("decode", 30, 2)
    ]  # fmt: skip
    (memory,) = run.memory
    assert memory["weights_bytes"] == 4 * find_artefact("demo").parameters
    heads, layers, head_dim = 2, 6, 64
    assert memory["kv_bytes"] == 2 * 54 * 2 * heads * layers * head_dim * 4
    report = {"speed": run.rows, "memory": run.memory}
    assert len(speed_table(report).rows) == 8
    assert len(memory_table(report).rows) == 1


def test_a_folder_larger_than_memory_is_left_out_with_a_note(monkeypatch):
    from qwen3q.evaluate import residence

    monkeypatch.setattr(residence, "free_memory", lambda: 1000)
    run = run_speed(find_artefact("demo"), SpeedOptions(), device="cpu")
    assert run.rows == run.memory == []
    assert "not timed" in run.note
