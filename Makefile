# `make distill` and `make test` each do everything on a fresh machine.
# PYTHON=/path/to/python chooses one; else the first of 3.11, 3.12 and 3.13 that is here.
PYTHON ?= $(shell sh infra/find_python.sh)
PYTHON := $(PYTHON)
VENV   := .venv
BIN    := $(VENV)/bin
# uv does not read pip's configuration: hand it pip's folder of wheels, where there is one.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null || echo $$PIP_FIND_LINKS)

# Some systems forbid Python to keep what it compiled: each process of a round would do it anew.
export PYTHONDONTWRITEBYTECODE :=

# LOCK=infra/requirements-ci.txt installs exactly what CI was seen to pass with, each file by its hash:
# of CPython 3.11 on Linux x86-64, and of no other.
LOCK ?=
TORCH := $(shell grep -o 'torch==[0-9.]*' pyproject.toml)
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: setup can-fetch distill test test-slow test-cluster recipes-tiny recipes docs pages format lock audit ui

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml $(LOCK)
	@sh infra/check_setup.sh "$(PYTHON)" "$(LOCK)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
ifeq ($(LOCK),)
	$(INSTALL) --editable ".[export,harness]" --group dev
else
	$(INSTALL) $(TORCH)
	$(INSTALL) --no-deps --require-hashes --requirement $(LOCK)
	$(INSTALL) --no-deps --editable .
endif
	@touch $@

distill: can-fetch setup  ## one whole round on the embedded default
	$(BIN)/cohobate run

can-fetch:
	@sh infra/check_setup.sh "$(or $(wildcard $(BIN)/python),$(PYTHON))" "$(LOCK)" data

test: setup  ## everything CI runs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## what takes minutes: real models, more rounds, twenty kills
	$(BIN)/pytest -m "slow or faults"

recipes-tiny: setup  ## every recipe and variant through the flow, on tiny models
	$(BIN)/python -m tests.recipes_tiny

# NAMES="gkd zephyr" runs these alone; OPTIONS="--set seeds=[1]" changes the size.
recipes: setup  ## every recipe at the size of docs/gallery.md: hours; goes on where it was stopped
	$(BIN)/python -m benchmarks.gallery $(NAMES) $(OPTIONS)
	$(BIN)/python docs/gallery.py

test-cluster: setup  ## two Ray nodes without a shared disk, S3 that goes away
	$(BIN)/pytest -m cluster

docs: setup  ## the site of docs/, in site/
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml

pages: setup  ## the pages of docs/ that are made from the code
	$(BIN)/python docs/pages.py

format: setup  ## the code's layout, and the pages that are made from it
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	$(BIN)/python docs/pages.py

# torch stays out: each machine has a build of its own, for its GPU or none.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --generate-hashes --no-annotate \
	--no-header --no-emit-package torch --no-emit-find-links --no-emit-index-url \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28

lock: setup  ## what CI and the image install (CPython 3.11, Linux x86-64), by version and hash
	$(COMPILE) --output-file infra/requirements.txt
	$(COMPILE) --extra export --extra harness --group dev --output-file infra/requirements-ci.txt

# OSV_URL: another service that speaks OSV's API, such as a mirror within a closed network.
AUDIT = $(BIN)/uv tool run pip-audit --vulnerability-service osv $(if $(OSV_URL),--osv-url $(OSV_URL)) \
	--disable-pip --no-deps --progress-spinner off \
	$(addprefix --ignore-vuln ,$(shell grep -oE '`(CVE|PYSEC|GHSA)-[^`]+`' infra/vulnerabilities.md | tr -d '`'))

audit: setup  ## known vulnerabilities of what CI and the image install, but for those explained
	echo $(TORCH) > $(VENV)/torch.txt
	$(AUDIT) --requirement $(VENV)/torch.txt
	$(AUDIT) --requirement infra/requirements.txt
	$(AUDIT) --requirement infra/requirements-ci.txt

ui: setup  ## the Prefect UI over the rounds of this folder
	$(BIN)/cohobate ui
