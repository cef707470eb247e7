"""Killed with SIGKILL at any moment and resumed, the result is byte for byte the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3q.models.config import read_config
from qwen3q.quantize.verify import verify_folder
from qwen3q.synthetic.checkpoint import write_checkpoint

pytest.importorskip("bitsandbytes", reason="needs the bnb extra")

Worker = Callable[..., dict[str, Any]]

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FROM_WEIGHTS = ["bnb:nf4", "bnb:int8", "fp8", "fp16"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    script = Path(__file__).with_name("fork_worker.py")
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(**request: Any) -> dict[str, Any]:
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    write_checkpoint(replace(read_config(demo_folder), **TINY), folder, shards=2)
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "TinyMoe"
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    config = replace(read_config(demo_folder), model_type="qwen3_moe", **TINY, **sizes)
    write_checkpoint(config, folder)
    return folder


def contents(out: Path) -> dict[str, Any]:
    """Every file under ``out``; of reports, everything but what the clock and the system say."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if path.is_dir():
            continue
        name = str(path.relative_to(out))
        if path.name == "report.json":
            report = json.loads(path.read_text())
            del report["run"]
            for row in report["linears"]:
                del row["seconds"]
            found[name] = report
        else:
            found[name] = path.read_bytes()
    return found


def spread(changes: int, points: int) -> list[int]:
    """Numbers of changes to die before: the first, the last, and evenly between."""
    return sorted({round(i * (changes - 1) / (points - 1)) for i in range(points)})


def check_all_kills(worker: Worker, tmp_path: Path, points: int, **request: Any) -> None:
    whole = worker(out=tmp_path / "whole", **request)
    assert whole["error"] is None, whole
    expected = contents(tmp_path / "whole")
    assert expected
    for point in spread(whole["changes"], points):
        out = tmp_path / f"killed-{point}"
        assert worker(out=out, kill_at=point, **request)["killed"]
        twice = worker(out=out, kill_at=whole["changes"] // 3, resume=True, **request)
        if twice["killed"] or twice["error"]:
            twice = worker(out=out, resume=True, **request)
        assert twice["error"] is None, (point, twice)
        assert contents(out) == expected, point


def test_formats_from_weights_alone(worker: Worker, dense: Path, tmp_path: Path) -> None:
    check_all_kills(worker, tmp_path, 9, model=dense, schemes=FROM_WEIGHTS)
    for folder in sorted((tmp_path / "whole").iterdir()):
        failed = [check for check in verify_folder(folder, dense) if not check.passed]
        assert not failed, (folder, failed)
