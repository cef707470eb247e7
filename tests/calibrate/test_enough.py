"""How many rows are enough: by the widest linear, and never where rows are asked for."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest

from qwen3q.calibrate.enough import rows_enough
from qwen3q.calibrate.load import CalibrationOptions, load_calibration
from qwen3q.calibrate.rows import MOST_ROWS
from qwen3q.models.catalog import find_release
from qwen3q.models.config import read_config
from qwen3q.models.source import resolve
from qwen3q.plan.job import QuantizeRequest, job_of


def widest(name: str) -> int:
    release = find_release(name)
    assert release is not None
    config = release.config
    inner = config.moe_intermediate_size if config.is_moe else config.intermediate_size
    seen = config.num_experts // config.num_experts_per_tok if config.is_moe else 1
    return max(config.q_size, config.hidden_size * seen, inner * seen)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b"])
def test_the_widest_linear_gets_its_tokens_and_no_row_more(name: str) -> None:
    """By the published shapes: 3072, 12288, and 2048 inputs that one token in 16 reaches."""
    assert widest(name) == {"qwen3-0.6b": 3072, "qwen3-8b": 12288, "qwen3-30b-a3b": 32768}[name]
    release = find_release(name)
    assert release is not None
    for per_channel, length in ((0.5, 512), (1.25, 1024), (2, 2048)):
        rows = rows_enough(release.config, per_channel, length)
        assert rows == ceil(widest(name) * per_channel / length)


def test_a_limit_holds_and_none_lifts_the_other() -> None:
    release = find_release("qwen3-32b")
    assert release is not None
    assert rows_enough(release.config, 1000, 512) == MOST_ROWS
    assert rows_enough(release.config, None, 512) == MOST_ROWS


def test_a_text_gives_evenly_spaced_rows_unless_a_number_is_asked_for(tmp_path: Path) -> None:
    source = resolve("demo", offline=True)
    assert source.folder is not None
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Line {number} of many." for number in range(20_000)))

    def rows(samples: int | None, most: int) -> tuple[tuple[int, ...], ...]:
        options = CalibrationOptions(samples=samples, most=most, length=64)
        return load_calibration(str(text), source, options).rows

    every = rows(None, MOST_ROWS)
    few = rows(None, 16)
    assert (len(every), len(few)) == (MOST_ROWS, 16)
    assert few == every[:: MOST_ROWS // 16]
    assert len(rows(40, 16)) == 40


def test_recipes_say_how_much_is_enough(demo_folder: Path) -> None:
    config = read_config(demo_folder)
    default = job_of(QuantizeRequest(formats=("gptq:int4",))).calibration
    fast = job_of(QuantizeRequest(recipe="fast")).calibration
    quality = job_of(QuantizeRequest(recipe="quality")).calibration
    counts = [
        rows_enough(config, text.tokens_per_channel, 512) for text in (fast, default, quality)
    ]
    assert counts == [12, 24, MOST_ROWS]
