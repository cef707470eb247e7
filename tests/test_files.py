"""Targets are whole or absent, and have one writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from qwen3q.errors import DiskError
from qwen3q.files import (
    partial_path,
    require_file_target,
    reserve,
    sole_writer,
    write_text,
    written_whole,
)

HOLD = """
import sys
from pathlib import Path
from qwen3q.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes ``tmp_path/sub/file`` until its input ends."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "sub" / "file")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_target_has_one_writer_as_long_as_that_lives(tmp_path, holder):
    target = tmp_path / "sub" / "file"
    with (
        pytest.raises(DiskError, match=r"Another run is writing .*sub/file\."),
        sole_writer(target),
    ):
        pass
    with sole_writer(target.with_name("other")):
        pass
    holder.communicate(timeout=30)
    with sole_writer(target):
        assert [path.name for path in target.parent.iterdir()] == [".file.lock"]
    assert not target.parent.exists()


def test_a_killed_writer_holds_nobody_off(tmp_path, holder):
    holder.kill()
    holder.wait(30)
    target = tmp_path / "sub" / "file"
    assert (target.parent / ".file.lock").exists()
    with sole_writer(target):
        target.write_text("x")
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_waiting_lasts_until_the_other_is_done(tmp_path, holder):
    threading.Timer(0.2, holder.stdin.close).start()
    with sole_writer(tmp_path / "sub" / "file", wait=True):
        assert holder.wait(30) == 0


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "deep" / "file"
    write_text(target, "old")

    def fail() -> None:
        with written_whole(target) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    with written_whole(target) as partial:
        assert partial == partial_path(target)
        partial.write_text("new")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_disk_that_takes_no_more_leaves_what_was_there(tmp_path, small_files):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(DiskError, match=r"Can't write .*file: File too large"):
        write_text(target, "x" * 2000)
    assert target.read_text() == "old"
    with (
        (tmp_path / "other").open("wb") as file,
        pytest.raises(DiskError, match=r"Can't reserve 0\.00 GB for .*other: File too large"),
    ):
        reserve(file, 2000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_disk_that_can_not_reserve_still_gives_the_size(tmp_path, monkeypatch):
    """As NFS answers, for instance."""

    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 2000)
    assert (tmp_path / "file").read_bytes() == bytes(2000)


def test_places_that_can_not_be_written_are_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for attempt in (
        lambda: write_text(file / "below", "x"),
        lambda: write_text(tmp_path, "x"),
        lambda: require_file_target(tmp_path),
        lambda: require_file_target(file / "a" / "b"),
        lambda: sole_writer(file / "below").__enter__(),
    ):
        with pytest.raises(DiskError):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
