# personalign: `make help` lists what there is.
# The interpreter that .venv is made from. A torch for CUDA or ROCm that it has, or that .venv has, is kept and used;
# everybody else gets the version of constraints.txt (tools/environment.py).
PYTHON ?= python3
# Test processes; with 2 each takes its own half of the cores.
WORKERS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --constraint .venv/constraints.txt
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.stamp ## install, fetch the model, run sweeps/demo.yaml: a table, a figure, an HTML report
	$(BIN)/personalign model fetch
	$(BIN)/personalign sweep sweeps/demo.yaml

test: .venv/.stamp-dev ## install and run the tests (without the long ones)
	$(BIN)/personalign model fetch
	$(PYTEST) -m "not slow"

test-all: .venv/.stamp-all ## install and run every test
	$(BIN)/personalign model fetch
	$(PYTEST)

lint: .venv/.stamp-dev ## style, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/.stamp-dev ## build dist/personalign-*.whl, with conf/, experiments/ and sweeps/ inside
	$(BIN)/python -m build --wheel

clean: ## remove .venv and build output (runs/ stays)
	rm -rf .venv dist build

.venv/.stamp: pyproject.toml constraints.txt tools/environment.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "personalign needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=/path/to/python3.11")'
	$(PYTHON) tools/environment.py .venv constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/.stamp-dev: .venv/.stamp
	$(PIP) --editable '.[dev]'
	@touch $@

# What only long tests use: Ray is 80 MB.
.venv/.stamp-all: .venv/.stamp-dev
	$(PIP) --editable '.[ray]'
	@touch $@
