"""Ctrl-C while llama.cpp calls back."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADING = """
import os, signal, sys, time
from pathlib import Path
from qwen3q.cli.app import _exit_on_signals
from qwen3q.llama import capi
from qwen3q.llama.model import LlamaModel

_exit_on_signals()
keep, sent = capi.log.write, []

def write(level, text):
    keep(level, text)
    if not sent:
        sent.append(True)
        os.kill(os.getpid(), int(sys.argv[2]))

capi.log.write = write
try:
    LlamaModel(Path(sys.argv[1])).close()
    time.sleep(20)
except KeyboardInterrupt:
    sys.exit(130)
print("lost")
"""


@pytest.mark.parametrize("number", [2, 15])
def test_an_end_that_comes_while_a_model_is_loaded_is_not_lost(demo_model, number):
    words = [sys.executable, "-c", LOADING, str(demo_model.path), str(number)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (128 + number, "", "")
