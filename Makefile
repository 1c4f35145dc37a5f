# `make help` lists the targets. Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Empty: PyPI's torch, which brings CUDA. `make install TORCH_BACKEND=cpu` takes the build without CUDA packages (uses uv).
TORCH_BACKEND ?=
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-slow test-slurm lint format paper benchmark clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with the locked dependencies (TORCH_BACKEND=cpu leaves CUDA out)

# editable_mode=compat: a path instead of an import hook, so that a clone called crbg does not hide the package from scripts beside it.
$(STAMP): requirements.lock pyproject.toml crbg/gates/kernels.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make install PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies (with CUDA packages several GB; TORCH_BACKEND=cpu leaves them out)"
ifeq ($(TORCH_BACKEND),)
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=compat -c requirements.lock -e '.[workflow,dev,docs]'
else
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH_BACKEND) --config-settings editable_mode=compat -c requirements.lock -e '.[workflow,dev,docs]'
endif
	touch $@

QUICK := --config config.yaml config/overlays/quickstart.yaml

quickstart: $(STAMP) ## the whole pipeline on handwritten digits: minutes on two cores, no download, writes results/quickstart/
	$(BIN)/snakemake --cores all --quiet rules --configfile config.yaml config/overlays/quickstart.yaml -- quickstart
	@$(BIN)/crbg report quickstart $(QUICK) --brief

# Two processes with one thread each; a module whose tests share what is dear to make stays in one of them (pytest.mark.xdist_group).
TWO := -n 2 --dist loadgroup

test: $(STAMP) ## all tests that need no long run (real-data tests run where CRBG_DATA is set)
	$(BIN)/python -m pytest $(TWO)

test-fast: $(STAMP) ## the short unit tests alone: under a minute on two cores
	$(BIN)/python -m pytest $(TWO) tests/unit -m "not slow and not slurm and not long"

test-slow: $(STAMP) ## the tests on real MNIST that take minutes; needs CRBG_DATA
	$(BIN)/python -m pytest -m slow

test-slurm: $(STAMP) ## the DAG on a real SLURM on this machine: root on Debian, CRBG_TEST_SLURM=1 (SLURM_TESTS="literal or cancelled" picks some)
	$(BIN)/python -m pytest tests/slurm -m slurm $(if $(SLURM_TESTS),-k "$(SLURM_TESTS)")

lint: $(STAMP) ## ruff, mypy --strict, import-linter, snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(STAMP) ## format all code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

paper: $(STAMP) ## tables, figures and verdicts of paper/ from the records that are there
	$(BIN)/crbg report

benchmark: $(STAMP) ## time gated against dense steps on this machine
	$(BIN)/python benchmarks/step.py --out benchmarks/step.md
	$(BIN)/python benchmarks/top_k.py --out benchmarks/top_k.md
	$(BIN)/python benchmarks/networks.py --out benchmarks/networks.md
	$(BIN)/python benchmarks/seeds.py --out benchmarks/seeds.md

clean: ## remove the demonstration's files and caches; runs and records stay
	rm -rf results/quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis
