"""Contributed rows, read by the estimator's own validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eval.memory.checks import judged, read_table
from eval.memory.sizes import vllm_token_checks
from eval.memory.speeds import speed_checks
from qwen3q.errors import UsageError
from qwen3q.evaluate.artefact import Artefact
from qwen3q.evaluate.contribute import MEMORY_COLUMNS, SPEED_COLUMNS, contribute_rows
from qwen3q.evaluate.predicted import Estimator, known_gpus
from qwen3q.evaluate.speed_run import SpeedRun, artefact_facts
from qwen3q.evaluate.speed_tests import Phase, Planned, SpeedTest, speed_row
from qwen3q.llama.oracle import write_header
from qwen3q.memory.gpus import Family
from qwen3q.memory.weights import release_weights
from qwen3q.models.catalog import find_release
from qwen3q.plan.gguf import plan_gguf
from qwen3q.plan.gguf_types import FILE_TYPES

TRUTH = Path(__file__).parents[2] / "eval" / "truth"
GPU = "NVIDIA GeForce RTX 4090"
RELEASE = find_release("qwen3-8b")
GIB = 1 << 30


@pytest.fixture
def artefact(tmp_path) -> Artefact:
    """A file of Qwen3-8B's shape with a header only, in a folder that nobody should see."""
    path = tmp_path / "secret" / "my-finetune.gguf"
    path.parent.mkdir()
    write_header(path, RELEASE.config, plan_gguf("x", RELEASE.config, FILE_TYPES["Q4_K_M"]))
    return Artefact("my-finetune", path, "gguf:Q4_K_M", 5 * 10**9, 8 * 10**9, "", {})


def run_of(artefact: Artefact, devices: list[str]) -> SpeedRun:
    facts = artefact_facts(artefact, "llama.cpp")
    tests = [
        SpeedTest(Planned(Phase.PREFILL, 512, 0, 1), (50_000_000,)),
        SpeedTest(Planned(Phase.DECODE, 64, 0, 1), (640_000_000,), (10_000_000,) * 64),
        SpeedTest(Planned(Phase.DECODE, 64, 4096, 1), (800_000_000,), (12_500_000,) * 64),
        SpeedTest(Planned(Phase.DECODE, 64, 0, 4), (900_000_000,), (14_000_000,) * 64),
    ]
    memory = [
        {"device": "CUDA0", "weights_bytes": 4 * GIB, "kv_bytes": GIB, "compute_bytes": GIB // 4,
         "rest_bytes": GIB // 2},
        {"device": "CPU", "weights_bytes": GIB, "kv_bytes": 0, "compute_bytes": GIB // 64,
         "rest_bytes": None},
    ][: 2 if devices else 0]  # fmt: skip
    shape = {"context": 4160, "batch": 1, "ubatch": 512, "gpu_layers": None}
    machine = {"devices": devices, "gpu_layers": None, "threads": 8, "llama_cpp": "0.3.36"}
    rows = [facts | speed_row(test) for test in tests]
    return SpeedRun(rows, [facts | shape | part for part in memory], machine)


def test_columns_are_those_of_the_truth(tmp_path, artefact):
    contribute_rows(tmp_path / "new", artefact, run_of(artefact, [GPU]))
    for name, columns in (("measured_speed", SPEED_COLUMNS), ("measured_memory", MEMORY_COLUMNS)):
        (first, *_), rows = read_table(TRUTH, name), read_table(tmp_path / "new", name)
        assert tuple(first) == columns
        assert all(tuple(row) == columns for row in rows)


def test_the_validation_reads_speed_as_it_was_measured(tmp_path, artefact):
    contribute_rows(tmp_path / "new", artefact, run_of(artefact, [GPU]))
    checks = list(judged(speed_checks(tmp_path / "new")[Family.NVIDIA]))
    assert [round(check.true) for check in checks] == [100, 80]
    assert [check.row.rsplit(" at ")[1] for check in checks] == ["32", "4128"]
    weights = release_weights(RELEASE, "gguf:Q4_K_M")
    estimator = Estimator(RELEASE.config, weights, 512, None, known_gpus([GPU]), 1.0)
    for check, depth in zip(checks, (0, 4096), strict=True):
        expected = estimator.speed(Planned(Phase.DECODE, 64, depth, 1))["tokens_per_second"]
        assert check.predicted == pytest.approx(expected, rel=1e-9)


def test_the_validation_reads_memory_by_part(tmp_path, artefact):
    contribute_rows(tmp_path / "new", artefact, run_of(artefact, [GPU]))
    (row,) = read_table(tmp_path / "new", "measured_memory")
    assert (row["weights_gpu_MiB"], row["weights_cpu_MiB"]) == ("4096.00", "1024.00")
    assert (row["kv_MiB"], row["compute_gpu_MiB"], row["compute_host_MiB"]) == (
        "1024.00", "256.00", "16.00"
    )  # fmt: skip
    assert row["total_gpu_MiB"] == f"{4096 + 1024 + 256 + 512:.2f}"
    assert (row["model"], row["quant"], row["ctx"]) == ("Qwen3-8B", "Q4_K_M", "4160")
    assert vllm_token_checks(tmp_path / "new") == ([], [])


def test_rows_name_no_path_and_no_machine(tmp_path, artefact):
    contribute_rows(tmp_path / "new", artefact, run_of(artefact, [GPU]))
    texts = [path.read_text() for path in (tmp_path / "new").iterdir()]
    assert len(texts) == 2
    for text in texts:
        for private in ("secret", "finetune", str(tmp_path), "/"):
            assert private not in text


def test_a_cpus_rows_are_kept_apart_from_gpus(tmp_path, artefact):
    contribute_rows(tmp_path / "new", artefact, run_of(artefact, []))
    rows = read_table(tmp_path / "new", "measured_speed")
    assert {(row["gpu"], row["n_gpus"], row["offload"]) for row in rows} == {("CPU", "0", "")}
    assert not [c for cs in speed_checks(tmp_path / "new").values() for c in judged(cs)]


def test_rows_are_added_to_a_file_and_other_files_refused(tmp_path, artefact):
    target, run = tmp_path / "rows.csv", run_of(artefact, [GPU])
    (line,) = contribute_rows(target, artefact, run)
    assert "3 rows" in line
    contribute_rows(target, artefact, run)
    assert len(target.read_text().splitlines()) == 1 + 2 * 3
    other = tmp_path / "other.csv"
    other.write_text("a,b\n")
    with pytest.raises(UsageError, match="other columns"):
        contribute_rows(other, artefact, run)
    assert other.read_text() == "a,b\n"


def test_what_cannot_improve_the_estimator_is_said(tmp_path, artefact, demo_ggufs):
    run = run_of(artefact, [GPU])
    demo = replace(artefact, path=demo_ggufs["Q8_0"], name="demo")
    assert "No release of Qwen3" in contribute_rows(tmp_path / "new", demo, run)[0]
    torch_rows = [row | {"engine": "torch"} for row in run.rows]
    nothing = contribute_rows(tmp_path / "new", artefact, SpeedRun(torch_rows, [], {}))
    assert "no rule" in nothing[0]
    assert not (tmp_path / "new").exists()
