"""What a power cut leaves: nothing gets its name, or a line in the journal, before its bytes last.

A file's bytes, and a folder's names, last as they were when they were last synced.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import random_rows, tiny_model, tiny_scheme

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.source import describe
from qwen3q.plan.gguf_types import FILE_TYPES
from qwen3q.quantize.folder import folder_jobs, quantize_folders
from qwen3q.quantize.run import quantize_gguf
from qwen3q.quantize.solve import SolveOptions

Contents = bytes | frozenset[str]


def contents(path: Path) -> Contents:
    return frozenset(os.listdir(path)) if path.is_dir() else path.read_bytes()


@dataclass
class Disk:
    """What lasts of the files below ``root``, by inode; and what was renamed or noted."""

    root: Path
    lasting: dict[int, Contents] = field(default_factory=dict)
    renamed: list[str] = field(default_factory=list)
    noted: int = 0

    def lasts(self, path: Path) -> bool:
        below = path.iterdir() if path.is_dir() else ()
        same = self.lasting.get(path.stat().st_ino) == contents(path)
        return same and all(map(self.lasts, below))

    def sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        found = [self.root, *self.root.rglob("*")]
        path = next(path for path in found if path.stat().st_ino == status.st_ino)
        self.lasting[status.st_ino] = contents(path)
        assert stat.S_ISDIR(status.st_mode) == path.is_dir()
        if path.name.endswith(".journal.jsonl") and path.read_bytes().count(b"\n") > 1:
            partial = path.with_name(path.name.removesuffix(".journal.jsonl") + ".partial")
            assert all(map(self.lasts, partial.glob("*.safetensors"))), path.read_text()
            self.noted += 1

    def rename(self, source: Path, target: Path) -> None:
        assert self.lasts(Path(source)), source
        self.renamed.append(Path(target).name)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    out = tmp_path / "out"
    out.mkdir()
    disk = Disk(out)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), disk.sync(descriptor)))
    for name in ("rename", "replace"):
        move = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, move=move: (disk.rename(a, b), move(a, b)))
    return disk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "Tiny", demo_folder)


def test_folders_and_what_they_are_resumed_from(model: Path, disk: Disk) -> None:
    source = describe(str(model))
    schemes = [tiny_scheme("fp8"), tiny_scheme("gptq:int4")]
    with Checkpoint(model) as checkpoint:
        options = SolveOptions("rtn", smoothing=False)
        jobs = folder_jobs(source, checkpoint, schemes, disk.root, options)
        rows = random_rows(source.config.vocab_size)
        kept = disk.root / ".importance-"
        made = quantize_folders(source, checkpoint, jobs, rows, importance=kept)
    assert {*disk.renamed} > {job.target.name for job in jobs}
    assert disk.noted == 2 * (source.config.num_hidden_layers + 1)
    listed = disk.lasting[disk.root.stat().st_ino]
    assert isinstance(listed, frozenset)
    assert listed >= {job.target.name for job in jobs}
    assert made.importance is not None
    assert len(list(made.importance.folder.iterdir())) == source.config.num_hidden_layers
    assert disk.lasts(made.importance.folder)


def test_gguf_files(disk: Disk) -> None:
    made = quantize_gguf(describe("demo"), [FILE_TYPES["Q4_0"], FILE_TYPES["Q8_0"]], disk.root)
    names = [artefact.path.name for artefact in made]
    assert disk.renamed == names
    listed = disk.lasting[disk.root.stat().st_ino]
    assert isinstance(listed, frozenset)
    assert listed >= set(names)
