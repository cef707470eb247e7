"""Killed with SIGKILL at any moment and resumed, the result is byte for byte the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import EXPERTS, tiny_model

from qwen3q.quantize.verify import verify_folder

Worker = Callable[..., dict[str, Any]]

FROM_WEIGHTS = ["bnb:nf4", "bnb:int8", "fp8", "fp16"]
SOLVED = ["gptq:int4", "gptq:int8", "gptq:int3", "awq:int4", "int8", "int4"]
NEAREST = {"group_size": 32, "options": {"algorithm": "rtn", "smoothing": False}}
"""The quickest solver: every run here is made several times."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
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
    return tiny_model(tmp_path_factory.mktemp("models") / "Tiny", demo_folder, shards=2)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "TinyMoe", demo_folder, **EXPERTS)


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


def check_kills(worker: Worker, tmp_path: Path, points: int, **request: Any) -> None:
    """Kills at ``points`` moments, first and last included, and resumes; kills one twice."""
    whole = worker(out=tmp_path / "whole", **request)
    assert whole["error"] is None, whole
    expected = contents(tmp_path / "whole")
    assert expected
    for point in spread(whole["changes"], points):
        out = tmp_path / f"killed-{point}"
        assert worker(out=out, kill_at=point, **request)["killed"]
        if point == 0:
            assert worker(out=out, kill_at=whole["changes"] // 2, resume=True, **request)["killed"]
        answer = worker(out=out, resume=True, **request)
        assert answer["error"] is None, (point, answer)
        assert contents(out) == expected, point


@pytest.mark.parametrize("formats", [["fp8"], []], ids=["a folder", "nothing"])
def test_gguf_files_with_importance_beside(
    worker: Worker, experts: Path, tmp_path: Path, formats: list[str]
) -> None:
    """Killed while text is run, rows are written, files get their names, and what was kept goes."""
    formats = [*formats, "gguf:Q4_0", "gguf:IQ4_NL"]
    request = {"model": experts, "formats": formats}
    whole = worker(out=tmp_path / "whole", **request)
    assert whole["error"] is None, whole
    expected = contents(tmp_path / "whole")
    assert sum(name.endswith(".gguf") for name in expected) == 2
    changes = whole["changes"]
    for point in {*spread(changes, 4), *range(changes - 6, changes)}:
        out = tmp_path / f"killed-{point}"
        assert worker(out=out, kill_at=point, **request)["killed"]
        answer = worker(out=out, resume=True, **request)
        assert answer["error"] is None, (point, answer)
        assert contents(out) == expected, point
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [], point


def check_verified(out: Path, model: Path) -> None:
    folders = [path for path in sorted(out.iterdir()) if not path.name.startswith(".")]
    assert folders
    for folder in folders:
        failed = [check for check in verify_folder(folder, model) if not check.passed]
        assert not failed, (folder, failed)


def test_every_format_of_a_dense_model(worker: Worker, dense: Path, tmp_path: Path) -> None:
    request = {"schemes": [*FROM_WEIGHTS, *SOLVED], "importance": True, **NEAREST}
    check_kills(worker, tmp_path, 4, model=dense, **request)
    check_verified(tmp_path / "whole", dense)


def test_every_format_of_experts(worker: Worker, experts: Path, tmp_path: Path) -> None:
    check_kills(worker, tmp_path, 3, model=experts, schemes=SOLVED, **NEAREST)
    check_verified(tmp_path / "whole", experts)


def test_error_feedback_and_smoothing(worker: Worker, dense: Path, tmp_path: Path) -> None:
    check_kills(worker, tmp_path, 3, model=dense, schemes=["gptq:int4"], group_size=32)


@pytest.mark.parametrize("smoothing", [True, False])
def test_a_float_model_that_runs_on_few_rows_or_none(
    worker: Worker, dense: Path, tmp_path: Path, smoothing: bool
) -> None:
    options = {"algorithm": "awq", "smoothing": smoothing}
    check_kills(
        worker, tmp_path, 2, model=dense, schemes=["gptq:int4"], group_size=32, options=options
    )


def test_activations_in_files(worker: Worker, dense: Path, tmp_path: Path) -> None:
    """The same bytes wherever activations lie, and no file of theirs left by a kill."""
    request = {"model": dense, "schemes": ["gptq:int4", "awq:int4"], **NEAREST}
    assert worker(out=tmp_path / "memory", **request)["error"] is None
    out = tmp_path / "files"
    assert worker(out=out, kill_at=40, memory_bytes=0, **request)["killed"]
    assert any(path.name.endswith(".activations") for path in out.iterdir())
    assert worker(out=out, resume=True, memory_bytes=0, **request)["error"] is None
    assert contents(out) == contents(tmp_path / "memory")


def test_killed_from_outside(worker: Worker, dense: Path, tmp_path: Path) -> None:
    request = {"model": dense, "schemes": ["gptq:int4", "int8"], **NEAREST}
    assert worker(out=tmp_path / "whole", **request)["error"] is None
    out = tmp_path / "killed"
    for seconds in (0.2, 0.35, 0.5):
        worker(out=out, kill_after=seconds, resume=True, **request)
    assert worker(out=out, resume=True, **request)["error"] is None
    assert contents(out) == contents(tmp_path / "whole")


def test_a_replacement_that_was_cut_goes_on(worker: Worker, dense: Path, tmp_path: Path) -> None:
    """With --force a folder is there while its successor is made: neither is lost."""
    old = {"model": dense, "schemes": ["gptq:int4"], "group_size": 32, "seed": 1}
    new = old | {"seed": 0}
    assert worker(out=tmp_path / "whole", **new)["error"] is None
    out = tmp_path / "out"
    assert worker(out=out, **old)["error"] is None
    before = contents(out)
    assert worker(out=out, kill_at=30, replace=True, **new)["killed"]
    assert before.items() <= contents(out).items()
    refused = worker(out=out, resume=True, **old)
    assert "calibration rows was" in refused["error"]
    assert worker(out=out, resume=True, **new)["error"] is None
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "calibration rows was"),
        ({"options": {"damping": 0.02}}, "options was"),
        ({"group_size": 64}, "format was"),
    ],
)
def test_other_calibration_or_options_are_refused(
    worker: Worker, change: dict[str, Any], says: str, dense: Path, tmp_path: Path
) -> None:
    request = {"model": dense, "schemes": ["gptq:int4"], "group_size": 32}
    assert worker(out=tmp_path, kill_at=30, **request)["killed"]
    if "group_size" in change:
        (tmp_path / ".Tiny-GPTQ-Int4-g32.journal.jsonl").rename(
            tmp_path / ".Tiny-GPTQ-Int4-g64.journal.jsonl"
        )
    answer = worker(out=tmp_path, resume=True, **(request | change))
    assert says in answer["error"]
    assert "--force" in answer["hint"]
