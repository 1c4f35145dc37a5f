# `make help` lists the targets. Everything runs in .venv, made from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Empty: PyPI's torch, which brings CUDA. `make install TORCH_BACKEND=cpu` takes the build without CUDA packages (uses uv).
TORCH_BACKEND ?=
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-slow test-slurm test-extras lint format docs dist paper benchmark clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## make .venv with the locked dependencies (TORCH_BACKEND=cpu: no CUDA packages)

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

# Two processes with one thread each. Tests that share an expensive fixture stay in one process (pytest.mark.xdist_group).
TWO := -n 2 --dist loadgroup

test: $(STAMP) ## all tests; those on real data run where CRBG_DATA is set
	$(BIN)/python -m pytest $(TWO)

test-fast: $(STAMP) ## the short unit tests: under a minute on two cores
	$(BIN)/python -m pytest $(TWO) tests/unit -m "not slow and not slurm and not long"

test-slow: $(STAMP) ## the tests on real MNIST that take minutes; need CRBG_DATA
	$(BIN)/python -m pytest -m slow

test-slurm: $(STAMP) ## the workflow on a real SLURM on this machine; root on Debian, CRBG_TEST_SLURM=1 (SLURM_TESTS="literal or cancelled" picks some)
	$(BIN)/python -m pytest tests/slurm -m slurm $(if $(SLURM_TESTS),-k "$(SLURM_TESTS)")

test-extras: test-slow test-slurm ## everything that make test leaves out: real MNIST and all tests on SLURM

lint: $(STAMP) ## ruff, mypy --strict, import-linter, codespell, snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(STAMP) ## format all code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

docs: $(STAMP) ## the documentation site in build/site, built strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(STAMP) ## sdist and wheel in dist/, checked, installed and used outside the clone
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	CRBG_DIST=dist $(BIN)/python -m pytest tests/integration/test_wheel.py

paper: $(STAMP) ## tables, figures, verdicts and generated parts of the documents, from the records
	$(BIN)/crbg report

benchmark: $(STAMP) ## time gated against dense steps on this machine; writes benchmarks/*.md
	$(BIN)/python benchmarks/step.py --out benchmarks/step.md
	$(BIN)/python benchmarks/top_k.py --out benchmarks/top_k.md
	$(BIN)/python benchmarks/networks.py --out benchmarks/networks.md
	$(BIN)/python benchmarks/seeds.py --out benchmarks/seeds.md

clean: ## remove the quickstart's files, build outputs and caches; runs and records stay
	rm -rf results/quickstart build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
