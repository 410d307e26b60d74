# `make demo` and `make test` do all set-up they need on a fresh machine with Python 3.12; called again they set up nothing.
PYTHON ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-slurm demo demo-compare docs clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## virtual environment with the pinned packages

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed (set PYTHON=... to name another 3.12)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

check: $(READY)  ## formatter, linter, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## the tests of every commit (under 15 minutes on two cores)
	$(BIN)/pytest --durations=15

test-slow: $(READY)  ## tests that take minutes each
	$(BIN)/pytest -m slow --durations=0

test-slurm: $(READY)  ## jobs on a real Slurm of two nodes on this machine (root; installs Slurm, munge and MariaDB)
	@$(BIN)/python -m tests.slurm.two_nodes check || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes slurm-wlm munge && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
		slurmdbd mariadb-server-core mariadb-client-core; }
	$(BIN)/pytest -m slurm --durations=0

demo: $(READY)  ## the whole road on this machine, with real text in 100+ languages
	$(BIN)/python -P -m emma.tools.demo

demo-compare: $(READY)  ## the demo, and at equal budget the same with and without translations, compared on one page
	$(BIN)/python -P -m emma.tools.demo --compare

docs: $(READY)  ## the guides and the API reference as a searchable site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:  ## remove the virtual environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
