"""What each room of ARCHITECTURE.md must not know, it does not import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "qwen3q"
CLOSED = {
    "models": {"plan", "calibrate", "quantize", "formats", "memory", "llama", "evaluate", "chat"},
    "checkpoint": {"models", "plan", "calibrate", "quantize", "formats", "memory", "evaluate"},
    "plan": {"calibrate", "quantize", "formats", "memory", "llama", "evaluate", "chat"},
    "calibrate": {"quantize", "formats", "llama", "memory", "evaluate", "chat"},
    "formats": {"calibrate", "quantize", "memory", "llama", "evaluate", "chat"},
    "memory": {"calibrate", "quantize", "llama", "evaluate", "chat"},
    "llama": {"calibrate", "quantize", "evaluate", "chat"},
    "quantize": {"memory", "evaluate", "chat"},
    "evaluate": {"calibrate", "chat"},
    "chat": {"plan", "calibrate", "quantize", "formats", "memory", "evaluate"},
}
"""Rooms, and those that they must not know."""
TAKE_NAMES = {"artefact.py", "named_tokenizer.py"}
"""Files of ``evaluate`` that turn what a user names into what is on disk."""
TAKE_TEXTS = {"hub_text.py"}
"""Files of ``evaluate`` that fetch a text, not a model, from the Hub."""


def imports(path: Path) -> Iterator[str]:
    """Modules that a file names, within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", CLOSED)
def test_a_room_knows_only_what_it_may(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            package, _, inside = module.partition(".")
            other = inside.partition(".")[0]
            if package != "qwen3q":
                continue
            assert other not in CLOSED[room] | {"cli"}, f"{path} imports {module}"


def test_what_measures_does_not_know_where_a_model_came_from():
    """It is given an ``Artefact``, in few files made from a name."""
    for path in sorted((PACKAGE / "evaluate").rglob("*.py")):
        known = set(imports(path))
        if path.name not in TAKE_NAMES:
            assert not {name for name in known if name.startswith("qwen3q.models.source")}, path
        if path.name not in TAKE_TEXTS:
            assert not {name for name in known if name.startswith("qwen3q.models.hub")}, path
            assert not {name for name in known if name.startswith("huggingface_hub")}, path


def test_nothing_but_tests_knows_the_tests():
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "eval").rglob("*.py")]:
        if "venv" not in path.parts:
            assert not {name for name in imports(path) if name.startswith("tests.")}, path


def test_only_entry_points_know_the_command_line():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" not in path.parts and path.name != "__main__.py":
            assert not {name for name in imports(path) if name.startswith("qwen3q.cli")}, path


def test_only_the_command_line_prints_and_exits():
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.parts or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "exit", "sys.exit"), path


@pytest.mark.parametrize("room", ["cli", "memory", "plan"])
def test_rooms_that_load_neither_torch_nor_llama_cpp(room):
    modules = [f"qwen3q.{room}.{path.stem}" for path in (PACKAGE / room).glob("*.py")]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "assert not {'torch', 'llama_cpp', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
