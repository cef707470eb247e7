"""A processor decodes as fast as its memory was read."""

from __future__ import annotations

import pytest

from qwen3q.memory import bandwidth
from qwen3q.memory.bandwidth import last_level_cache, read_bandwidth
from qwen3q.memory.estimate import estimate
from qwen3q.memory.gpus import find_gpu
from qwen3q.memory.processor import processor, this_processor
from qwen3q.memory.settings import Engine, Settings
from qwen3q.memory.weights import release_weights
from qwen3q.models.catalog import find_release


def test_reading_memory_is_timed_over_more_than_the_cache():
    assert 0 < last_level_cache() < 1 << 34
    assert 1e8 < read_bandwidth(1) < 1e13


def test_decoding_follows_the_speed_that_memory_was_read_with(monkeypatch):
    release = find_release("qwen3-8b")
    weights = release_weights(release, "gguf:Q4_K_M")

    def decode(part):
        return estimate(
            "", release.config, weights, Engine.LLAMA_CPP, Settings(8192), [part]
        ).speed.decode

    speeds = []
    for measured in (20e9, 80e9):
        monkeypatch.setattr(bandwidth, "read_bandwidth", lambda threads, rate=measured: rate)
        part, notes = this_processor()
        assert f"{measured / 1e9:.0f} GB/s" in notes[-1].partition(";")[0]
        speeds.append(decode(part))
    assert speeds[1] == pytest.approx(4 * speeds[0])
    assert speeds[0] < decode(processor(16 << 30)) < speeds[1]


def test_experts_beside_a_gpu_are_read_at_the_processors_speed():
    """Eight of each layer's experts per token, counted by hand."""
    release = find_release("qwen3-30b-a3b")
    weights = release_weights(release, "gguf:Q8_0")
    times = []
    for bandwidth_there in (20e9, 80e9):
        settings = Settings(8192, cpu_experts=48, host_bandwidth=bandwidth_there)
        found = estimate(
            "", release.config, weights, Engine.LLAMA_CPP, settings, [find_gpu("RTX 4090")]
        )
        times.append(1 / found.speed.decode)
    experts = 48 * 8 * 3 * 2048 * 768 * 34 / 32
    assert times[0] - times[1] == pytest.approx(experts * (1 / 20e9 - 1 / 80e9), rel=1e-6)
