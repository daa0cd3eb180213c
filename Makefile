# Two commands are enough: `make demo` and `make test`. Each makes .venv with pip the first time.
# On a machine without a GPU the CPU build of torch is far smaller:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP = $(BIN)/python -m pip install -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-slow lint format bench screenshots clean

demo: .venv/.stamp
	$(BIN)/danlu demo

test: .venv/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --timeout 300

test-slow: .venv/.stamp-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/.stamp-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/.stamp-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.stamp-dev
	@set -e; for file in bench/[a-z]*.py; do \
	  name=$$(basename $$file .py); echo "bench.$$name" >&2; $(BIN)/python -m bench.$$name --quick --json; \
	done

screenshots: .venv/.stamp-dev
	$(BIN)/python scripts/screenshots.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Danlu needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

.venv/.stamp-dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	@touch $@ .venv/.stamp
