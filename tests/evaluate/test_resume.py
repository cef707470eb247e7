"""Interrupted runs: killed at several points, and resumed to the figures of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3q.errors import DiskError, Interrupted, UsageError
from qwen3q.evaluate import answers as answers_module
from qwen3q.evaluate import measure as measure_module
from qwen3q.evaluate.answers import Answers
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.endpoint_http import EndpointError
from qwen3q.evaluate.evaluation import Evaluation, evaluate
from qwen3q.evaluate.measure import TextOptions
from qwen3q.evaluate.resume import ANSWERS_SUFFIX, SUFFIX, Kept

RUN = """
import os, signal, sys
from pathlib import Path
from qwen3q.data.texts import evaluation_text
from qwen3q.evaluate.backends import BackendOptions
from qwen3q.evaluate.evaluation import EvaluationOptions, evaluate
from qwen3q.evaluate.gate_run import GateOptions
from qwen3q.evaluate.measure import TextOptions
from qwen3q.evaluate.speed_options import SpeedOptions
from qwen3q.evaluate.tasks import Level

def options(out, **more):
    return EvaluationOptions(
        TextOptions(context=128, max_chunks=3),
        BackendOptions(threads=1, device="cpu"),
        gate=GateOptions(Level.BASIC, each=1, max_tokens=12),
        speed=SpeedOptions(prompts=(8,), generate=2, depths=(0,), repeats=2, threads=1),
        out=Path(out),
        **more,
    )

TEXT = evaluation_text("english")
"""

KILLED = """
out, label, reference, *names = sys.argv[1:]

def progress(done, total, now):
    if now == label and done:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(reference, names, "text", TEXT, options(out), progress)
"""

shared: dict[str, object] = {}
exec(RUN, shared)


def run(names: list[str], out: Path, **more) -> Evaluation:
    reference, *others = names
    return evaluate(reference, others, "text", shared["TEXT"], shared["options"](out, **more))


def figures(done: Evaluation) -> dict:
    """Everything but times of day, durations and what only timing gives."""
    reference = done.report["runs"][0]["reference"]
    return {
        "reference": {k: v for k, v in reference.items() if k not in ("seconds", "backend")},
        "results": [
            {k: v for k, v in row.items() if k != "seconds"} for row in done.report["results"]
        ],
        "gate": done.report["gate"],
    }


@pytest.fixture(scope="module")
def names(demo_ggufs, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("files")
    return [str(shutil.copy(demo_ggufs[kind], folder)) for kind in ("BF16", "Q8_0", "Q2_K")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(names, whole) -> Evaluation:
    return run(names, whole)


@pytest.mark.parametrize(
    ("label", "sections", "answers"),
    [
        ("Qwen3-demo-BF16 (reference)", 0, 0),
        ("Qwen3-demo-Q2_K", 1, 0),
        ("Qwen3-demo-Q8_0: questions", 3, 1),
    ],
)
def test_a_killed_run_goes_on_to_the_same_figures(
    label, sections, answers, names, undisturbed, tmp_path
):
    command = [sys.executable, "-c", RUN + KILLED, str(tmp_path), label, *names]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "report.json").exists()
    resumed = run(names, tmp_path, resume=True)
    assert figures(resumed) == figures(undisturbed)
    taken = [note for note in resumed.notes if "taken from an earlier call" in note]
    assert len(taken) == sections + answers
    assert [note for note in resumed.notes if note not in taken] == list(undisturbed.notes)
    told = [note for note in taken if "one answer of gate: questions" in note]
    assert len(told) == answers
    assert json.loads((tmp_path / "report.json").read_text()) == resumed.report
    again = run(names, tmp_path, resume=True)
    assert again.report["results"] == resumed.report["results"]
    assert again.report["speed"] == resumed.report["speed"]
    assert again.report["memory"] == resumed.report["memory"]
    assert not list(tmp_path.glob(".*.partial"))
    assert not list(tmp_path.glob(f"*{ANSWERS_SUFFIX}"))


def test_what_changed_is_measured_again(names, whole, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    stat = Path(names[1]).stat()
    os.utime(names[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    again = run(names, out, resume=True)
    changed = [note for note in again.notes if "its files changed" in note]
    assert len(changed) == 3
    assert all(note.startswith("Qwen3-demo-Q8_0: ") for note in changed)
    assert figures(again) == figures(undisturbed)


def test_other_options_and_broken_files_are_measured_again(demo_ggufs, tmp_path):
    artefact = find_artefact(str(demo_ggufs["Q8_0"]))
    calls = []

    def measured(kept: Kept, asked: object) -> int:
        return kept.get(artefact, "part", asked, lambda: calls.append(asked) or len(calls))

    assert measured(Kept(tmp_path), (1, "a")) == 1
    assert measured(Kept(tmp_path, resume=True), (1, "a")) == 1
    assert measured(Kept(tmp_path), (1, "a")) == 2
    other = Kept(tmp_path, resume=True)
    assert measured(other, (2, "a")) == 3
    assert "other options" in other.notes[0]
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    path.write_text(path.read_text()[:-20])
    assert measured(Kept(tmp_path, resume=True), (2, "a")) == 4
    path.write_text('{"sections": {"part": 7}}')
    assert measured(Kept(tmp_path, resume=True), (2, "a")) == 5
    assert calls == [(1, "a"), (1, "a"), (2, "a"), (2, "a"), (2, "a")]


def test_a_full_disk_is_told_in_a_sentence(monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(answers_module, "write_text", lambda path, text: None)

    def keep() -> None:
        with Answers(full, {"asked": "this"}, resume=False) as answers:
            answers.add(0, [1, 2])

    with pytest.raises(DiskError, match="Can't write /dev/full: No space left on device"):
        keep()


def test_answers_stay_until_what_follows_is_kept(tmp_path):
    path, key = tmp_path / "x.jsonl", {"asked": "this"}

    def found(now: dict[str, str] = key, *, resume: bool = True) -> dict[int, list[int]]:
        return Answers(path, now, resume=resume).tokens

    def interrupted() -> None:
        with Answers(path, key, resume=True) as answers:
            answers.add(4, [1, 2])
            answers.add(0, [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert found() == found() == {4: [1, 2], 0: []}
    whole = path.read_text()
    for end in range(len(whole)):
        path.write_text(whole[:end])
        left = found()
        assert left.items() <= {4: [1, 2], 0: []}.items()
        assert len(left) >= whole[:end].count("\n") - 1
    for damage in ('{"asked": "this"}', "7", "[1, 2]", '[1, [2, "x"]]', "[1, 2, 3]", "\x00"):
        path.write_text(whole + damage + "\n[7, [8]]\n")
        assert found() == {4: [1, 2], 0: [], 7: [8]}
    path.write_bytes(b"\xff\xfe\n[7, [8]]\n")
    assert found() == {}
    path.write_text(whole)
    assert found({"asked": "that"}) == {}
    path.write_text(whole)
    assert found(resume=False) == {}
    with Answers(path, key, resume=True) as answers:
        answers.add(1, [5])
    assert not path.exists()


def test_without_a_folder_there_is_nothing_to_resume(names):
    options = shared["options"]("unused", resume=True)
    with pytest.raises(UsageError, match="--resume"):
        evaluate(names[0], names[1:], "text", shared["TEXT"], replace(options, out=None))


@pytest.mark.parametrize(("step", "kept"), [("write_reference", False), ("_compare", True)])
@pytest.mark.parametrize(
    ("stop", "told"),
    [
        (KeyboardInterrupt(), Interrupted),
        (SystemExit(143), Interrupted),
        (EndpointError("Gone.", "Is it running?"), EndpointError),
    ],
)
def test_what_ends_a_run_early_tells_of_what_is_kept(
    step, kept, stop, told, names, tmp_path, monkeypatch
):
    def stopped(*_):
        raise stop

    monkeypatch.setattr(measure_module, step, stopped)
    with pytest.raises(told) as ended:
        run(names, tmp_path)
    assert ("--resume" in ended.value.hint) == kept
    assert (tmp_path / "reference.logits").exists() == kept
    if told is EndpointError:
        assert ended.value.hint.startswith("Is it running?")


def test_a_folder_of_another_reference_is_not_called_this_runs(names, tmp_path):
    run(names, tmp_path)
    options = replace(shared["options"](tmp_path), text=TextOptions(context=64, max_chunks=3))
    with pytest.raises(UsageError) as refused:
        evaluate(names[0], names[1:], "text", shared["TEXT"], options)
    assert "--resume" not in refused.value.hint


def test_threads_change_no_figure_and_what_ran_the_reference_is_kept(names, tmp_path):
    first_call = run(names, tmp_path)
    options = shared["options"](tmp_path, resume=True)
    threads = replace(options, backend=replace(options.backend, threads=2), speed=None)
    again = evaluate(names[0], names[1:], "text", shared["TEXT"], threads)
    assert not [note for note in again.notes if "again" in note]
    assert len([note for note in again.notes if "taken from an earlier call" in note]) == 5
    ran, first = (done.report["runs"][0]["reference"] for done in (again, first_call))
    assert ran["backend"] == first["backend"] != {}
    assert ran["seconds"] == pytest.approx(first["seconds"], abs=0.001)
    assert ran["seconds"] > 0
