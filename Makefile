# Every target works on a fresh machine that has git, make and Python 3.11 or 3.12: each makes .venv first if need be.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
# The first that runs and has the right version: a name on the PATH may be a stub of a version manager.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c "$(SUITS)" 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-smoke test-slow test-faults test-gpu lint style check-conf bench bench-cpu clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## Make .venv and install the pinned packages

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(SUITS)" || { echo "needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Teach the tiny model to read handwriting, on the CPU, in minutes
	$(BIN)/python -m harness experiment=demo tuner=dora

test: $(INSTALLED) ## Run the fast tests (CPU, no network, twelve minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not faults and not gpu and not multi_gpu"

test-smoke: $(INSTALLED) ## Run what a user would on the command line: runs, resumes, multiruns, a killed sweep
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not gpu" tests/test_main.py tests/sweep/test_restart.py

test-slow: $(INSTALLED) ## Run all tests that start whole runs (half an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not gpu and not multi_gpu"

test-faults: $(INSTALLED) ## Kill runs, damage checkpoints, fill disks (the short form is in test-slow)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "faults and not gpu and not multi_gpu" --kills=5

test-gpu: $(INSTALLED) ## Run the tests that need a GPU, and those that need several where there are several
	$(BIN)/python -m pytest -n 4 -m "gpu and not multi_gpu"
	$(BIN)/python -c "import sys, torch; sys.exit(torch.cuda.device_count() < 2)" || exit 0; $(BIN)/python -m pytest -m multi_gpu

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check harness tests
	$(BIN)/ruff format --check harness tests
	$(BIN)/mypy

style: $(INSTALLED) ## Format and fix what can be fixed by itself
	$(BIN)/ruff format harness tests
	$(BIN)/ruff check --fix harness tests

check-conf: $(INSTALLED) ## Compose and validate every shipped config
	$(BIN)/python -m pytest tests/test_conf.py

bench: $(INSTALLED) ## Measure the workloads of benchmarks/bench.yaml and write docs/performance.md (needs a GPU)
	$(BIN)/python benchmarks/bench.py run
	$(BIN)/python benchmarks/bench.py render

bench-cpu: $(INSTALLED) ## Compare a step of the tiny model with stock transformers + PEFT, and write docs/performance.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/cpu_bench.py --out docs/results/performance_cpu.json
	$(BIN)/python benchmarks/bench.py render

clean: ## Remove .venv and caches; run folders stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
