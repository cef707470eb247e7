"""Threads of what is called as a library wait without spinning, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwen3q import threads
from qwen3q.models.source import describe
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize import folder
from qwen3q.quantize.run import quantize_targets

CALL = """
import os, sys
from pathlib import Path

seen = {}
def watch(event, arguments):
    if event == "import" and arguments[0] == "torch":
        seen.setdefault("torch", "GOMP_SPINCOUNT" in os.environ)

sys.addaudithook(watch)
from qwen3q.evaluate.artefact import find_artefact
from qwen3q.evaluate.backends import BackendOptions, open_backend
from qwen3q.models.source import resolve
from qwen3q.plan.job import QuantizeRequest, job_of
from qwen3q.quantize.run import predict_memory, quantize_targets, QuantizeOptions

assert "GOMP_SPINCOUNT" not in os.environ
def job(name):
    return resolve("demo"), job_of(QuantizeRequest((name,)))

if sys.argv[1] == "quantize":
    quantize_targets(*job("fp8"), Path(sys.argv[2]))
elif sys.argv[1] == "predict":
    predict_memory(*job("gptq:int4"), QuantizeOptions())
else:
    open_backend(find_artefact("demo"), BackendOptions(device="cpu"), 64).close()
assert seen == {"torch": True}, seen
"""


@pytest.mark.parametrize("what", ["quantize", "predict", "evaluate"])
def test_torch_is_loaded_when_its_threads_are_told_not_to_spin(what: str, tmp_path: Path) -> None:
    """Importing the package changes nothing of the process."""
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    words = [sys.executable, "-c", CALL, what, str(tmp_path)]
    run = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_weights_of_a_narrow_model_are_packed_on_one_thread_where_threads_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "hand_over_seconds", lambda: 1.0)
    before, used = torch.get_num_threads(), set()
    pack = folder.pack_unit

    def counted(*arguments):
        used.add(torch.get_num_threads())
        pack(*arguments)

    monkeypatch.setattr(folder, "pack_unit", counted)
    torch.set_num_threads(3)
    try:
        quantize_targets(describe("demo"), job_of(QuantizeRequest(("fp8",))), tmp_path)
        assert used == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
