"""The command line as a whole: help, imports, exit codes."""

from __future__ import annotations

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
    for line, following in pairwise(lines):
        if line and following:
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
        "try:\n    main()\nexcept SystemExit: pass\n"
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
