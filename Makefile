# `make help` lists the targets. All commands run in .venv, which is installed from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# If empty, torch comes from PyPI, with CUDA packages. `make install TORCH_BACKEND=cpu` installs a build without them (by uv).
TORCH_BACKEND ?=
STAMP := $(VENV)/.installed

# With pipefail, a pipe fails if any of its commands fails.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-fast test-slow test-slurm test-clients test-onnx test-extras lint format docs dist paper pdf benchmark clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv with the locked dependencies (TORCH_BACKEND=cpu: no CUDA packages)

# editable_mode=compat adds a path instead of an import hook. Otherwise, a clone in a folder named crbg would hide the package
# from scripts next to that folder.
$(STAMP): requirements.lock pyproject.toml crbg/gates/kernels.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make install PYTHON=python3.11")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies (several GB with CUDA packages; TORCH_BACKEND=cpu omits these)"
ifeq ($(TORCH_BACKEND),)
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=compat -c requirements.lock -e '.[workflow,dev,docs,clients]'
else
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --torch-backend $(TORCH_BACKEND) --config-settings editable_mode=compat -c requirements.lock -e '.[workflow,dev,docs,clients]'
endif
	touch $@

# Lines of Snakemake's log that the quickstart omits; it shows one line per finished job, and errors.
CHATTER := '^(Select jobs|Execute [0-9]|\[|Finished jobid|Using |Assuming |Building |Provided |Conda |Job stats|Complete log|(job|-+|[a-z_]+) +(count|-+|[0-9]+)$$|$$)'
QUICK := --config config.yaml config/overlays/quickstart.yaml

quickstart: $(STAMP) ## run the whole pipeline on handwritten digits: 3 to 9 minutes on two cores, no download, writes results/quickstart/
	@echo "running the quickstart; the logs are in results/quickstart/logs/"
	@$(BIN)/snakemake --cores all --quiet rules host --configfile config.yaml config/overlays/quickstart.yaml -- quickstart \
		2>&1 | { grep --line-buffered -vE $(CHATTER) || :; }
	@$(BIN)/crbg report quickstart $(QUICK) --brief

# Two test processes with one thread each. Tests that share an expensive fixture run in the same process (pytest.mark.xdist_group).
TWO := -n 2 --dist loadgroup

test: $(STAMP) ## run all tests; tests on real data need CRBG_DATA
	$(BIN)/python -m pytest $(TWO)

test-fast: $(STAMP) ## run the short unit tests: under a minute on two cores
	$(BIN)/python -m pytest $(TWO) tests/unit -m "not slow and not slurm and not long"

test-slow: $(STAMP) ## run the tests on real MNIST that take minutes; needs CRBG_DATA
	$(BIN)/python -m pytest -m slow

test-slurm: $(STAMP) ## test the workflow on a real SLURM on this machine; needs root on Debian and CRBG_TEST_SLURM=1 (SLURM_TESTS="literal or cancelled" selects some tests)
	$(BIN)/python -m pytest tests/slurm -m slurm $(if $(SLURM_TESTS),-k "$(SLURM_TESTS)")

test-clients: $(STAMP) ## search in models of 60 families of timm and in Lightning modules; a few minutes on two cores
	$(BIN)/python -m pytest $(TWO) tests/clients -m clients

test-onnx: $(STAMP) ## test the export to ONNX in onnxruntime; needs `pip install crbg[export]`
	$(BIN)/python -c "import onnx, onnxruntime, onnxscript"
	$(BIN)/python -m pytest tests/unit/export

test-extras: test-slow test-slurm test-clients test-onnx ## run the tests that `make test` skips: real MNIST, SLURM, models of other libraries, ONNX

lint: $(STAMP) ## run ruff, mypy --strict, import-linter, codespell, snakefmt, snakemake --lint
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

docs: $(STAMP) ## build the documentation site in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(STAMP) ## build sdist and wheel in dist/, check them, and test an installation outside the clone
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	CRBG_DIST=dist $(BIN)/python -m pytest tests/integration/test_wheel.py

paper: $(STAMP) ## generate tables, figures, verdicts and parts of the documents from the records
	$(BIN)/crbg report

pdf: $(STAMP) ## typeset paper/paper.pdf from the committed tables and figures, if LaTeX is installed
	$(BIN)/python -c "from crbg.report.paper import main; main('paper')"

benchmark: $(STAMP) ## compare the speed of gated and dense steps on this machine; writes benchmarks/*.md
	$(BIN)/python benchmarks/step.py --out benchmarks/step.md
	$(BIN)/python benchmarks/top_k.py --out benchmarks/top_k.md
	$(BIN)/python benchmarks/networks.py --out benchmarks/networks.md
	$(BIN)/python benchmarks/convolutions.py --out benchmarks/convolutions.md
	$(BIN)/python benchmarks/find_ticket.py --out benchmarks/find_ticket.md
	$(BIN)/python benchmarks/seeds.py --out benchmarks/seeds.md
	$(BIN)/python benchmarks/packed.py --out benchmarks/packed.md
	$(BIN)/python benchmarks/ship.py --out benchmarks/ship.md

clean: ## remove the quickstart's files, build outputs and caches; runs and records stay
	rm -rf results/quickstart build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
