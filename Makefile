# Everything is plain pip underneath; the README shows the same lines.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# RPC is what the memory tests use as a stand-in for GPUs.
export CMAKE_ARGS ?= -DGGML_RPC=ON -DLLAVA_BUILD=OFF

.PHONY: demo test lint clean

demo: $(VENV)/.installed-llama
	$(BIN)/qwen3q demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-llama: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet -e '.[llama]'
	touch $@

# torch is pinned first: one build for tests and CI, the range in pyproject.toml for users.
$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.installed-llama

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
