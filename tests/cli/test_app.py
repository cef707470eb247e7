"""The command line as a whole: help, imports, exit codes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import pairwise

import pytest

from qwen3q.cli.app import VERBS


def test_help_names_every_verb(cli):
    run = cli("--help")
    assert run.returncode == 0
    assert all(verb in run.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cli, verb):
    run = cli(verb, "--help")
    assert run.returncode == 0, run.stderr
    assert "Usage: qwen3q" in run.stdout.replace("python -m ", "")


@pytest.mark.parametrize("words", [["download"], ["eval", "endpoint"]])
def test_paragraphs_of_help_fill_a_narrow_terminal(cli, words):
    """A line ends where the next word would not fit, or where a paragraph does."""
    run = cli(*words, "--help", COLUMNS="80")
    text = run.stdout.split("\n╭")[0].strip().splitlines()
    lines = [line.strip() for line in text[1:]]
    within = [(line, following) for line, following in pairwise(lines) if line and following]
    assert within
    for line, following in within:
        assert len(f"{line} {following.split()[0]}") > 78


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["models"],
        ["inspect", "qwen3-8b"],
        ["quantize", "qwen3-8b", "--to", "gguf:Q4_K_M", "--dry-run"],
    ],
)
def test_planning_imports_neither_torch_nor_llama_cpp(arguments):
    script = (
        "import sys; sys.argv = ['qwen3q', *sys.argv[1:]]\n"
        "from qwen3q.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'torch', 'llama_cpp', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_unknown_verb_is_a_usage_error(cli):
    run = cli("quantise")
    assert run.returncode == 2
    assert "quantise" in run.stderr


def test_doctor_tells_what_is_there(cli):
    run = cli("doctor", "--json")
    assert run.returncode == 0, run.stderr
    checks = {check["name"]: check for check in json.loads(run.stdout)["checks"]}
    assert checks["python"]["status"] == "ok"
    assert checks["llama.cpp"]["status"] == "ok"
    for name, module, extra in (("lm-eval", "lm_eval", "tasks"), ("nvml", "pynvml", "nvml")):
        installed = importlib.util.find_spec(module) is not None
        assert (f"qwen3q[{extra}]" in checks[name]["remedy"]) == (not installed)


def test_ctrl_c_before_anything_is_imported_is_no_traceback():
    script = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from qwen3q.__main__ import main\n"
        "main()\n"
    )
    words = [sys.executable, "-c", script]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize(
    "ends", ["KeyboardInterrupt", "SystemExit(143)", "errors.Interrupted('', SystemExit(130))"]
)
def test_ctrl_c_while_an_interrupted_run_ends_is_no_traceback(ends):
    script = (
        "import atexit, os, signal\n"
        "from qwen3q import errors\n"
        "from qwen3q.cli import app\n"
        "def end(): raise " + ends + "\n"
        "app.build_app = lambda words: end\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "app.main()\n"
    )
    words = [sys.executable, "-c", script]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode in (130, 143)
    assert "Interrupted." in run.stderr
    assert "Traceback" not in run.stderr


def main_that(does):
    """What ``qwen3q`` prints where its verb is ``does``, an expression."""
    script = (
        "import numpy, torch\n"
        "from qwen3q.cli import app\n"
        "def raise_(error): raise error\n"
        f"app.build_app = lambda words: lambda: {does}\n"
        "app.main()\n"
    )
    words = [sys.executable, "-c", script]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("torch.empty(1 << 50)", "this machine is full (tried to allocate 4503599627370496 bytes)"),
        ("numpy.zeros(1 << 50)", "this machine is full (Unable to allocate 8.00 PiB"),
        (
            "raise_(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 "
            "has a total capacity of 23.69 GiB of which 1.00 GiB is free.'))",
            "the GPU is full (Tried to allocate 2.00 GiB).",
        ),
        (
            "raise_(RuntimeError('MPS backend out of memory (MPS allocated: 9.05 GiB, max allowed: "
            "9.07 GiB). Tried to allocate 64.00 MB on private pool. Use PYTORCH_'))",
            "the GPU is full (Tried to allocate 64.00 MB on private pool).",
        ),
    ],
)
def test_full_memory_is_told_in_a_sentence(does, says):
    run = main_that(does)
    assert run.returncode == 1
    assert run.stderr.startswith("qwen3q: The memory of ")
    assert says in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("verb", ["inspect", "estimate", "verify"])
def test_a_name_that_no_disk_takes_is_told_and_cut_short(cli, verb):
    run = cli(verb, "x" * 5000)
    assert run.returncode == 1
    assert run.stderr == f"qwen3q: Can't use {'x' * 80}...: File name too long.\n"


def test_other_errors_of_the_system_are_not_hidden():
    run = main_that("raise_(OSError(5, 'Input/output error'))")
    assert "Traceback" in run.stderr
    assert run.returncode == 1


@pytest.mark.parametrize(
    "words", [("models",), ("inspect", "demo", "--tensors"), ("estimate", "demo")]
)
def test_a_reader_that_has_enough_is_no_failure(words):
    """As in ``qwen3q models | head -1``; the pipe is closed before anything is printed."""
    words = [sys.executable, "-m", "qwen3q", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert (run.stderr.read(), run.wait()) == (b"", 0)


def test_other_errors_of_torch_are_not_taken_for_full_memory():
    run = main_that("raise_(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))")
    assert "RuntimeError: mat1 and mat2" in run.stderr
