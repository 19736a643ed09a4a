# `make distill` and `make test` each do everything on a fresh machine.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# uv does not read pip's configuration: hand it pip's folder of wheels, where there is one.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || echo $$PIP_FIND_LINKS)

.PHONY: setup distill test test-slow test-cluster format ui

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[export,harness]" --group dev
	@touch $@

distill: setup  ## one whole round on the embedded default
	$(BIN)/cohobate run

test: setup  ## everything CI runs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: setup  ## what takes minutes: real models, twenty kills
	$(BIN)/pytest -m "slow or faults"

test-cluster: setup  ## two Ray nodes without a shared disk, S3 that goes away
	$(BIN)/pytest -m cluster

format: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

ui: setup  ## the Prefect UI over the rounds of this folder
	$(BIN)/cohobate ui
