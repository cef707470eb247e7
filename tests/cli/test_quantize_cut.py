"""``qwen3q quantize`` that was cut, is gone on with, or has no room on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer, Repo, folder_files

SHORT = ("--calibration-samples", "2", "--calibration-length", "32")


def limited(*words: object) -> subprocess.CompletedProcess[str]:
    """A run that may write no file of more than 8 MB: Q8_0 does not fit, importance does."""
    call = [sys.executable, "-m", "qwen3q", *map(str, words)]
    shell = ["bash", "-c", 'ulimit -f 8000; exec "$@"', "bash", *call]
    return subprocess.run(shell, capture_output=True, text=True, check=False)


def test_a_run_cut_before_its_files_replaces_what_it_was_to_replace(cli, tmp_path):
    formats = ("--to", "bnb:nf4", "--to", "gguf:Q4_K_M", "--to", "gguf:Q8_0")
    call = ("quantize", "demo", *formats, "--calibration", "balanced", *SHORT, "--out", tmp_path)
    assert cli(*call).returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    first, second = sorted(made)
    (tmp_path / first).write_bytes(b"from a file that the cut run was to replace")
    (tmp_path / second).unlink()
    assert limited(*call, "--force").returncode == 1
    assert list(tmp_path.glob(".importance-*"))

    resumed = cli(*call, "--resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")} == made
    told = json.loads(resumed.stdout)["artefacts"]
    assert [a["file_bytes"] for a in told[1:]] == [len(made[first]), len(made[second])]
    assert not list(tmp_path.glob(".*"))


def test_what_another_run_kept_neither_remakes_nor_replaces_files(cli, tmp_path):
    """Importance of rows of another length, whose run was cut in the same folder."""
    words = ("--calibration", "balanced", *SHORT, "--out", tmp_path)
    other = ("--calibration-length", "48")
    assert limited("quantize", "demo", "--to", "gguf:Q8_0", *words, *other).returncode == 1
    [kept] = tmp_path.iterdir()

    call = ("quantize", "demo", "--to", "gguf:Q4_K_M", "--to", "gguf:Q4_0", *words)
    assert cli(*call).returncode == 0
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    assert cli(*call, "--resume").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")} == made
    assert kept.exists()

    stranger = min(made)
    stranger.write_bytes(b"somebody's")
    refused = cli(*call, "--resume")
    assert refused.returncode == 1
    assert f"{stranger} exists already" in refused.stderr


def test_resuming_leaves_a_file_alone_that_no_cut_run_explains(cli, tmp_path):
    stranger = tmp_path / "Qwen3-demo-Q8_0.gguf"
    stranger.write_bytes(b"somebody's")
    call = ("quantize", "demo", "--to", "int4", "--to", "gguf:Q8_0", *SHORT, "--out", tmp_path)
    refused = cli(*call, "--resume")
    assert refused.returncode == 1
    assert f"{stranger} exists already" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [stranger.name]


def test_room_for_files_is_looked_for_before_the_calibration(demo_folder, tmp_path, monkeypatch):
    """Qwen3-demo takes 7.1 MB as W4A16 and 8.4 MB as Q8_0; 64 MiB stay free."""
    from qwen3q.errors import DiskError
    from qwen3q.models.source import describe
    from qwen3q.plan.job import QuantizeRequest, job_of
    from qwen3q.quantize.run import quantize_targets

    job = job_of(QuantizeRequest(("int4", "gguf:Q8_0"), samples=2, length=32))
    room = type("Usage", (), {"free": (64 << 20) + 12_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    with pytest.raises(DiskError, match="GB free"):
        quantize_targets(describe(str(demo_folder)), job, tmp_path / "out")
    assert not list(tmp_path.iterdir())


NO_ROOM_FOR_THE_OUTPUT = """
import shutil, sys
from types import SimpleNamespace
from qwen3q.cli.app import main

def disk_usage(path, real=shutil.disk_usage):
    return real(path) if "cache" in str(path) else SimpleNamespace(free=1 << 20)

shutil.disk_usage = disk_usage
main()
"""


@pytest.mark.parametrize("formats", [("--to", "gguf:Q8_0"), ("--to", "int4", *SHORT)])
def test_room_for_the_output_is_looked_for_before_a_download(demo_folder, tmp_path, formats):
    with HubServer() as hub:
        hub.repos["someone/Tune"] = Repo(folder_files(demo_folder))
        where = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
        words = ["quantize", "someone/Tune", *formats, "--out", str(tmp_path / "out")]
        run = subprocess.run(
            [sys.executable, "-c", NO_ROOM_FOR_THE_OUTPUT, *words],
            capture_output=True,
            text=True,
            env={**os.environ, **where},
            check=False,
        )
        assert run.returncode == 1
        assert "GB free; this needs" in run.stderr
        assert hub.served_bytes("config.json") > 0
        assert hub.served_bytes("model.safetensors") == 0


@pytest.mark.parametrize(
    "words",
    [(), ("--calibration", "balanced", *SHORT)],
    ids=["from the weights", "with a matrix of its own"],
)
def test_a_run_of_files_that_was_cut_at_its_end_sees_that_they_are_whole(cli, tmp_path, words):
    """Cut after the last rename, or between two: what has its name is whole."""
    formats = ("--to", "gguf:Q8_0", "--to", "gguf:Q4_K_M")
    call = ("quantize", "demo", *formats, *words, "--out", tmp_path)
    assert cli(*call).returncode == 0
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = cli(*call, "--resume", "--json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)["artefacts"]
    assert [a["format"] for a in told] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    assert [a["file_bytes"] for a in told] == [len(made[Path(a["path"]).name]) for a in told]

    (tmp_path / "Qwen3-demo-Q4_K_M.gguf").unlink()
    assert cli(*call, "--resume").returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made

    other = ("--calibration", "self") if words else ("--yarn", "2")
    refused = cli("quantize", "demo", *formats, *words, *other, "--out", tmp_path, "--resume")
    assert refused.returncode == 1
    assert "Qwen3-demo-Q8_0.gguf exists already" in refused.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made


def test_a_file_of_other_weights_is_not_taken_for_whole(cli, demo_folder, tmp_path):
    """A fine-tune that was trained on in its folder: the same header, other data."""
    tune = shutil.copytree(demo_folder, tmp_path / "tune")
    call = ("quantize", tune, "--to", "gguf:Q8_0", "--out", tmp_path)
    assert cli(*call).returncode == 0
    weights = tune / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-2] + b"\0\0")
    refused = cli(*call, "--resume")
    assert refused.returncode == 1
    assert "exists already" in refused.stderr


def test_a_file_of_another_text_is_not_taken_for_whole(cli, tmp_path):
    """The text was edited under its name, or is cut into other rows."""
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six " * 50)
    call = ("quantize", "demo", "--to", "gguf:Q8_0", "--calibration", text, "--out", tmp_path)
    length, samples = "--calibration-length", "--calibration-samples"
    short = (length, "32", samples, "2")
    others = [(length, "32", samples, "3"), (length, "48", samples, "2"), (length, "32")]
    assert cli(*call, *short).returncode == 0
    assert cli(*call, *short, "--resume").returncode == 0
    made = (tmp_path / "Qwen3-demo-Q8_0.gguf").stat()
    edited = (short, made.st_mtime_ns + 10**9)
    for words, time in (*((words, made.st_mtime_ns) for words in others), edited):
        os.utime(text, ns=(time, time))
        refused = cli(*call, *words, "--resume")
        assert refused.returncode == 1, words
        assert "Qwen3-demo-Q8_0.gguf exists already" in refused.stderr


@pytest.mark.parametrize("formats", [("bf16",), ("fp8", "bf16")])
def test_a_disk_that_is_full_at_the_start_leaves_nothing(tmp_path, formats):
    """Files of at most 8 MB: FP8 fits, BF16 does not."""
    words = [sys.executable, "-m", "qwen3q", "quantize", "demo", "--out", str(tmp_path / "out")]
    for name in formats:
        words += ["--to", name]
    shell = ["bash", "-c", 'ulimit -f 12000; exec "$@"', "bash", *words]
    run = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "Can't reserve" in run.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


INTERRUPTED_TWICE = """
import os, signal
from qwen3q.cli.app import main
from qwen3q.quantize import folder
from qwen3q.quantize.activations import ActivationStore

def solve(*_):
    os.kill(os.getpid(), signal.SIGINT)

def leave(store, *_, real=ActivationStore.__exit__):
    os.kill(os.getpid(), signal.SIGINT)
    real(store)

folder.solve_layer = solve
ActivationStore.__exit__ = leave
main()
"""


def test_a_second_interruption_while_the_first_is_cleaned_up_after_is_quiet(tmp_path):
    words = ["quantize", "demo", "--to", "int4", *SHORT, "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 130
    assert run.stderr.endswith("qwen3q: Interrupted.\n")
    assert "Exception" not in run.stderr
    assert not list(tmp_path.iterdir())


OUT_OF_ROOM = """
import errno, os, sys
from pathlib import Path
from qwen3q.cli.app import main

def full(path, *_, real=Path.write_text, **named):
    if path.name == "report.json":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return real(path, *_, **named)

Path.write_text = full
main()
"""


def test_a_disk_that_is_full_at_the_end_is_told_and_the_layers_are_kept(tmp_path, cli):
    words = ["quantize", "demo", "--to", "fp8", "--out", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", OUT_OF_ROOM, *words], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, run.stderr
    assert "report.json: No space left on device." in run.stderr
    assert "go on with --resume" in run.stderr
    assert "Traceback" not in run.stderr
    assert cli(*words, "--resume").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["Qwen3-demo-FP8"]


def test_importance_that_a_full_disk_cut_is_told_and_gone_on_with(cli, tmp_path):
    words = ("quantize", "demo", "--to", "gguf:Q8_0", "--calibration", "balanced", *SHORT)
    run = limited(*words, "--out", tmp_path)
    assert run.returncode == 1
    [kept] = tmp_path.iterdir()
    assert f"The layers that were run are kept in {kept}: go on with --resume." in run.stderr
    assert cli(*words, "--out", tmp_path, "--resume").returncode == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]


def test_importance_of_which_no_layer_fitted_is_not_said_to_be_kept(cli, tmp_path):
    """Files of at most 1 KB: not even the first layer's."""
    out = tmp_path / "out"
    words = ("quantize", "demo", "--to", "gguf:Q8_0", "--calibration", "balanced", *SHORT)
    call = [sys.executable, "-m", "qwen3q", *words, "--out", str(out)]
    shell = ["bash", "-c", 'ulimit -f 1; exec "$@"', "bash", *call]
    run = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert ".importance-" in run.stderr
    assert "kept" not in run.stderr
    assert not out.exists() or not list(out.iterdir())


WAITS_IN_THE_FIRST_LAYER = """
import sys
from qwen3q.cli.app import main
from qwen3q.quantize.importance import ImportanceStore

def save(*words, real=ImportanceStore.save):
    ImportanceStore.save = real
    real(*words)
    print("calibrating", flush=True)
    sys.stdin.read()

ImportanceStore.save = save
main()
"""


def test_two_runs_never_share_what_they_keep_of_a_calibration(cli, tmp_path):
    """One text and two types: the first to end would remove what the other still needs."""
    words = ("--calibration", "balanced", *SHORT, "--out", str(tmp_path))
    call = [sys.executable, "-c", WAITS_IN_THE_FIRST_LAYER, "quantize", "demo", "--to", "gguf:Q8_0"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*call, *words], stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "calibrating\n"
        other = cli("quantize", "demo", "--to", "gguf:Q4_0", *words)
        assert other.returncode == 1
        assert f"Another run is calibrating GGUF files of Qwen3 demo in {tmp_path}" in other.stderr
        assert cli("quantize", "demo", "--to", "gguf:Q5_0", "--out", tmp_path).returncode == 0
        first.communicate("")
    assert first.returncode == 0
    assert cli("quantize", "demo", "--to", "gguf:Q4_0", *words).returncode == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"Qwen3-demo-{name}.gguf" for name in ("Q4_0", "Q5_0", "Q8_0")]


KILLED_WHEN_BEGUN = """
import os, signal
from qwen3q.cli.app import main
from qwen3q.quantize import gguf

gguf._quantize_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_a_replacement_of_a_file_that_was_killed_goes_on(cli, tmp_path):
    target = tmp_path / "Qwen3-demo-Q4_0.gguf"
    call = ["quantize", "demo", "--to", "gguf:Q4_0", "--out", str(tmp_path)]
    assert cli(*call).returncode == 0
    made = target.read_bytes()
    target.write_bytes(b"of an older version")
    words = [sys.executable, "-c", KILLED_WHEN_BEGUN, *call, "--force"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -9
    assert cli(*call).returncode == 1
    resumed = cli(*call, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert target.read_bytes() == made
    assert list(tmp_path.iterdir()) == [target]
