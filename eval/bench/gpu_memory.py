"""How much of a GPU calibration takes, counted on one that is pretended.

    python -m eval.bench.gpu_memory qwen3-32b [--to gptq:int4] [--rows 32]

One decoder layer of the model's shape, with random weights, is quantized on a pretended GPU
(``pretend_gpu.py``): every tensor that would lie in its memory counts from when it is made to when
it is gone. What CUDA, its libraries and its allocator take comes on top: about a gigabyte. All of
it runs on the processor; 32 rows of 512 tokens are one portion on a GPU.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.bench import pretend_gpu
from qwen3q.calibrate.rows import TokenRows
from qwen3q.checkpoint.reader import Checkpoint
from qwen3q.models.source import describe
from qwen3q.plan.schemes import parse_scheme
from qwen3q.quantize.folder import RunOptions, folder_jobs, quantize_folders
from qwen3q.quantize.solve import SolveOptions
from qwen3q.quantize.stream import StreamOptions
from qwen3q.synthetic.checkpoint import write_checkpoint

_ROW = 512
_VOCABULARY = 8192
_OURS = str(Path(__file__).parents[2] / "qwen3q")


@dataclass
class Counter:
    """Bytes of the tensors that live on a pretended GPU.

    Attributes:
        peak: the most so far.
        place: where that was, innermost call of ours first.
    """

    peak: int = 0
    place: str = ""
    _now: int = 0
    _live: dict[int, tuple[int, int]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def counted(self, put: Callable[..., Any]) -> Callable[..., Any]:
        """``put`` of the pretended GPU, with what it makes counted."""

        def run(value: Any, where: torch.device) -> Any:
            made = put(value, where)
            if made is not value:
                with torch._C.DisableTorchFunctionSubclass():
                    storage = made.untyped_storage()
                self._add(storage.data_ptr(), storage.nbytes())
                weakref.finalize(made, self._release, storage.data_ptr())
            return made

        return run

    def _add(self, key: int, nbytes: int) -> None:
        with self._lock:
            count = self._live.get(key, (0, 0))[0]
            self._live[key] = (count + 1, nbytes)
            self._now += 0 if count else nbytes
            if self._now > self.peak:
                self.peak, self.place = self._now, _place()

    def _release(self, key: int) -> None:
        with self._lock:
            count, nbytes = self._live.pop(key)
            if count > 1:
                self._live[key] = (count - 1, nbytes)
            else:
                self._now -= nbytes


def _place() -> str:
    frame, names = sys._getframe(3), list[str]()
    while frame is not None and len(names) < 3:
        if frame.f_code.co_filename.startswith(_OURS):
            names.append(f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(names)


def measure(model: str, formats: list[str], rows: int, folder: Path) -> tuple[Counter, float]:
    """The bytes, and the seconds that it took on the processor."""
    counter = Counter()
    config = replace(describe(model).config, num_hidden_layers=1, vocab_size=_VOCABULARY)
    write_checkpoint(config, folder / "Layer")
    generator = random.Random(0)
    text = tuple(tuple(generator.randrange(_VOCABULARY) for _ in range(_ROW)) for _ in range(rows))
    source = describe(str(folder / "Layer"))
    schemes = [parse_scheme(name) for name in formats]
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch, Checkpoint(folder / "Layer") as checkpoint:
        patch.setattr(pretend_gpu, "put", counter.counted(pretend_gpu.put))
        pretend_gpu.pretend_gpus(patch)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        jobs = folder_jobs(source, checkpoint, schemes, folder / "out", SolveOptions(sweeps=0))
        stream = StreamOptions(("cuda",), work_folder=folder)
        rows_of = TokenRows(text, {"name": "random"})
        quantize_folders(source, checkpoint, jobs, rows_of, RunOptions(stream=stream))
    return counter, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="alias or folder of the model whose layers are taken")
    parser.add_argument("--to", action="append", default=[], help="gptq:int4 if absent; repeatable")
    parser.add_argument("--rows", type=int, default=32, help=f"of {_ROW} tokens")
    asked = parser.parse_args()
    formats = asked.to or ["gptq:int4"]
    with tempfile.TemporaryDirectory() as folder:
        counter, seconds = measure(asked.model, formats, asked.rows, Path(folder))
    gigabytes = counter.peak / 1e9
    print(f"{asked.model}, {', '.join(formats)}: {gigabytes:.2f} GB at {counter.place}")
    print(f"{seconds:.0f} s on the processor, {asked.rows} rows of {_ROW} tokens")


if __name__ == "__main__":
    main()
