# Every target sets up what it needs, once; all that a fresh machine needs is Python 3.12.
PYTHON ?= python3.12
VENV := .venv
BIN := $(VENV)/bin
TORCH211 := .venv-torch211
VLLM := .venv-vllm
COMET := .venv-comet
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow test-torch211 test-vllm test-comet test-slurm test-faults test-mutants gpu demo demo-compare docs dist clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create the virtual environment with the pinned packages

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed (set PYTHON=... to name another 3.12)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

check: $(READY)  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## format, and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## run the tests of every commit, in two processes (under 25 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations=15

test-slow: $(READY)  ## run the tests that take minutes each
	$(BIN)/pytest -m slow --durations=0

# torch 2.11 before the packages of $(VENV), whose other versions it shares.
$(TORCH211)/.ready: $(READY)
	$(PYTHON) -m venv $(TORCH211)
	$(TORCH211)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0
	$(TORCH211)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	echo $(CURDIR)/$(VENV)/lib/python3.*/site-packages > $$(echo $(TORCH211)/lib/python3.*/site-packages)/shared.pth
	@touch $@

test-torch211: $(TORCH211)/.ready  ## launch, train, stop, resume and convert with the oldest torch that GPU machines bring
	$(TORCH211)/bin/python -P -c "import torch; assert torch.__version__.startswith('2.11.'), torch.__version__"
	$(TORCH211)/bin/python -P -m pytest -m "not gpu and not slurm" --durations=10 tests/megatron_patches \
		tests/tools/training/test_torchrun.py tests/tools/training/test_command.py \
		tests/tools/training/test_resume.py tests/tools/training/test_layouts.py \
		tests/checkpoints_conversion/test_trained_checkpoints.py

$(VLLM)/.ready: $(READY) tests/vllm_environment.py
	$(BIN)/python -P -m tests.vllm_environment $(VLLM)

test-vllm: $(VLLM)/.ready  ## let vLLM's engine, on the CPU, score and read what is released
	VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
		$(VLLM)/bin/python -P -m pytest -m "vllm" --durations=5 \
		tests/tools/evaluation/benchmarks/test_backends.py tests/checkpoints_conversion/release/test_vllm.py

$(COMET)/.ready: $(READY) tests/comet_environment.py
	$(BIN)/python -P -m tests.comet_environment $(COMET)

test-comet: $(COMET)/.ready  ## score translations with COMET's own package, on tiny checkpoints
	EMMA_COMET_PYTHON=$(COMET)/bin/python $(BIN)/pytest -m comet tests/tools/evaluation/quality

test-slurm: $(READY)  ## run jobs on a real two-node Slurm on this machine (as root; installs Slurm, munge and MariaDB)
	@$(BIN)/python -m tests.slurm.two_nodes check || { apt-get update && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes slurm-wlm munge && \
		DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
		slurmdbd mariadb-server-core mariadb-client-core; }
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "slurm and not slow" --durations=0 \
		$$(grep --recursive --files-with-matches --include='test_*.py' 'mark\.slurm' tests)

gpu: $(READY)  ## measure all that is worth it on one GPU, in 8 minutes (SECONDS=...; REHEARSE=1 on a machine without one)
	$(BIN)/python -P -m benchmarks.sitting --seconds $(or $(SECONDS),480) $(if $(REHEARSE),--rehearse)

test-faults: $(READY)  ## break disks, memory and processes under every stage (as root; 30 minutes on two cores)
	$(BIN)/pytest -m faults --durations=10 tests/faults

test-mutants: $(READY)  ## break the code where it must never be wrong, and see the nearest tests fail
	$(BIN)/python -P -m tests.mutants

demo: $(READY)  ## run every stage on this machine, on real text in 100+ languages
	$(BIN)/python -P -m emma.tools.demo

demo-compare: $(READY)  ## run the demo, then compare mixes at equal budget: without and with translations, optimised
	$(BIN)/python -P -m emma.tools.demo --compare

docs: $(READY)  ## build the guides and the API reference as a searchable site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

dist: $(READY)  ## build the source distribution and the wheel, and check them
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove the virtual environment, caches, the site and built distributions; runs and data stay
	rm -rf $(VENV) $(TORCH211) $(VLLM) .pytest_cache .mypy_cache .ruff_cache build dist site *.egg-info
