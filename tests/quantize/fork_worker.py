"""Runs quantizations in forks of one process that has torch loaded, and kills them on request.

Started by tests as a script: one JSON request per line in, one JSON answer per line out. Every
fork is a process of its own that dies by a real SIGKILL: just before its n-th change to the disk
(``kill_at``), or after some seconds (``kill_after``).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import bitsandbytes.functional
import torch
from tiny import random_rows, tiny_scheme

from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.errors import Qwen3qError
from qwen3q.models.source import ModelSource, describe
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize import folder as driver
from qwen3q.quantize.run import QuantizeOptions, quantize_targets
from qwen3q.quantize.solve import SolveOptions
from qwen3q.quantize.stream import StreamOptions

assert bitsandbytes.functional
CRASHED = 70


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            serve_and_exit(request)
        if request.get("kill_after") is not None:
            time.sleep(request["kill_after"])
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        answer: dict[str, Any] = {"killed": os.WIFSIGNALED(status)}
        note = Path(request["out"]) / "answer.json"
        if status == CRASHED << 8:
            answer["error"] = "a traceback, on stderr"
        elif not answer["killed"]:
            answer |= json.loads(note.read_text())
            note.unlink()
        print(json.dumps(answer), flush=True)


def serve_and_exit(request: dict[str, Any]) -> NoReturn:
    try:
        serve(request)
    except BaseException:
        traceback.print_exc()
        os._exit(CRASHED)
    os._exit(0)


def serve(request: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    changes = count_changes(request.get("kill_at"))
    try:
        quantize(request, out)
        answer = {"error": None, "hint": None}
    except Qwen3qError as error:
        answer = {"error": error.message, "hint": error.hint}
    count = changes[0]
    (out / "answer.json").write_text(json.dumps(answer | {"changes": count}))


def quantize(request: dict[str, Any], out: Path) -> None:
    source = describe(request["model"])
    assert source.folder is not None
    if "formats" in request:
        quantize_job(request, source, out)
        return
    schemes = [tiny_scheme(name, request.get("group_size")) for name in request["schemes"]]
    with Checkpoint(source.folder) as checkpoint:
        stream = StreamOptions(memory_bytes=request.get("memory_bytes", 1 << 30))
        options = SolveOptions(**request.get("options", {}))
        jobs = driver.folder_jobs(source, checkpoint, schemes, out, options)
        driver.quantize_folders(
            source,
            checkpoint,
            jobs,
            random_rows(source.config.vocab_size, request.get("seed", 0)),
            driver.RunOptions(
                resume=request.get("resume", False),
                replace=request.get("replace", False),
                stream=stream,
            ),
            importance=out / ".importance-" if request.get("importance") else None,
        )


def quantize_job(request: dict[str, Any], source: ModelSource, out: Path) -> None:
    """Folders and GGUF files as the command line asks for them."""
    formats = tuple(request["formats"])
    asked = QuantizeRequest(formats, calibration="balanced", samples=2, length=32)
    options = QuantizeOptions(threads=1, replace=request.get("replace", False))
    quantize_targets(source, job_of(asked), out, options, resume=request.get("resume", False))


def count_changes(kill_at: int | None) -> list[int]:
    """Counts what changes the disk, and dies just before change ``kill_at``."""
    count = [0]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*arguments, **options)

        return call

    for name in ("fsync", "pwrite", "rename", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    shutil.copyfile = counted(shutil.copyfile)
    Path.write_text = counted(Path.write_text)  # type: ignore[method-assign]
    return count


if __name__ == "__main__":
    main()
