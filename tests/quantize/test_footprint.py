"""Predicted memory: parts that follow from shapes, and a real process beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from qwen3q.models.catalog import find_release
from qwen3q.models.config import Qwen3Config, read_config
from qwen3q.quantize.footprint import Workload, layer_float_bytes, predict_peak
from qwen3q.synthetic.checkpoint import write_checkpoint

WORK = Workload(tokens=8192, at_once=512, threads=2, product_bytes=2)
PLENTY = 1 << 40


def config_of(name: str) -> Qwen3Config:
    release = find_release(name)
    assert release is not None
    return replace(release.config, num_hidden_layers=1)


def test_8b_takes_two_and_a_half_layers_beside_its_activations() -> None:
    config = config_of("qwen3-8b")
    assert layer_float_bytes(config) == 4 * 192_946_432
    peak = predict_peak(config, 1, WORK, PLENTY)
    assert peak.stage in ("statistics of down_proj", "solving down_proj")
    assert peak.statistics == 4 * (12288 * 12288 + 12288 * 4096)
    assert (peak.total - peak.activations) / layer_float_bytes(config) < 2.5


def test_more_tokens_and_schemes_take_more_up_to_the_budget() -> None:
    config = config_of("qwen3-8b")
    one = predict_peak(config, 1, WORK, PLENTY)
    more = predict_peak(config, 1, replace(WORK, tokens=16384), PLENTY)
    four = predict_peak(config, 4, WORK, PLENTY)
    assert four.activations - one.activations == 3 * 8192 * 4096 * 4
    assert more.activations > 1.8 * one.activations
    assert predict_peak(config, 4, WORK, 1 << 29).total < one.total
    assert (more.weights, more.statistics, more.output) == (one.weights, one.statistics, one.output)


def test_many_small_experts_are_solved_some_channels_of_all_at_a_time() -> None:
    """What a thread works on is 64 output channels of every expert at the least."""
    small = {"hidden_size": 256, "moe_intermediate_size": 128, "num_experts": 256}
    config = replace(config_of("qwen3-30b-a3b"), **small)
    peak = predict_peak(config, 1, WORK, PLENTY)
    assert peak.stage == "solving up_proj"
    assert peak.workspace >= 2 * 64 * 256 * 256 * 4 * 16


def test_a_process_takes_what_is_predicted(demo_folder: Path, tmp_path: Path) -> None:
    shape = {
        "num_hidden_layers": 1,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
    }
    write_checkpoint(replace(read_config(demo_folder), **shape), tmp_path / "model")
    command = [sys.executable, "-m", "qwen3q", "quantize", str(tmp_path / "model")]
    command += ["--to", "gptq:int8", "--calibration-samples", "8", "--calibration-length", "64"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--out", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert (
        sum(v for v in memory["predicted"].values() if isinstance(v, int))
        == (memory["predicted_bytes"])
    )
    assert 0.7 < memory["peak_bytes"] / memory["predicted_bytes"] < 1.2
    [report] = (tmp_path / "out").glob("*/report.json")
    spent = json.loads(report.read_text())["run"]
    assert spent["predicted_peak_memory_bytes"] > 0
    assert abs(spent["peak_memory_bytes"] / memory["peak_bytes"] - 1) < 0.1
