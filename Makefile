# Everything a person, a hook or CI runs. Needs Python 3.11+, make and a C library, nothing else.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4
TESTS ?= tests
export COATCHECK_DATA_DIR ?= .coatcheck
# Where it is set, each of the thousand processes that the tests start compiles our modules anew: three times as slow.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help demo up down status test test-phoenix phoenix lint types layers format format-check check schema secrets bench soak-cluster pins clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp is as new as the last set-up; pyproject and the pins make it out of date.
$(VENV)/.run-stamp: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) -s $(VENV)
	@echo "setting up $(VENV) …" >&2
	@$(PIP) install -c constraints.txt -e '.[local]'
	@touch $@

# Also mends an environment whose making was interrupted.
.PHONY: $(VENV)
$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is missing or older than 3.11" >&2; \
	    echo "hint: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "hint: Debian and Ubuntu keep venv in a package of its own, python3-venv" >&2; exit 1; }

$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	@echo "adding the development tools to $(VENV) …" >&2
	@$(PIP) install -c constraints.txt -e '.[local,dev]'
	@touch $@

# 850 MB under the Elastic License 2.0, so in an environment of its own.
$(VENV)-phoenix/.stamp: constraints-phoenix.txt
	@echo "setting up $(VENV)-phoenix …" >&2
	@$(PYTHON) -m venv --clear $(VENV)-phoenix
	@$(VENV)-phoenix/bin/python -m pip --disable-pip-version-check -q install -c constraints-phoenix.txt arize-phoenix
	@touch $@

phoenix: $(VENV)-phoenix/.stamp ## Install Arize Phoenix for `coatcheck up --phoenix` (850 MB)

demo: $(VENV)/.run-stamp ## Run one feature through the five agents and show it
	@$(BIN)/coatcheck demo

up: $(VENV)/.run-stamp ## Start the local stack in the background
	@$(BIN)/coatcheck up --detach

down: $(VENV)/.run-stamp ## Stop the local stack; its data stay
	@$(BIN)/coatcheck down

status: $(VENV)/.run-stamp ## Show what runs and where
	@$(BIN)/coatcheck status || test $$? -eq 3

test: $(VENV)/.dev-stamp ## Run the tests on real servers (TESTS=path, WORKERS=4)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-phoenix: $(VENV)/.dev-stamp $(VENV)-phoenix/.stamp ## Run the contract tests against a real Phoenix
	@$(BIN)/python -m pytest -n 0 --timeout 900 tests/phoenix/contract.py

lint: $(VENV)/.dev-stamp ## Check the style
	@$(BIN)/ruff check .

format: $(VENV)/.dev-stamp ## Rewrite the code in the one format, mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

format-check: $(VENV)/.dev-stamp ## Check the format
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev-stamp ## Check the types (mypy strict)
	@$(BIN)/mypy

layers: $(VENV)/.dev-stamp ## Check which package imports which
	@$(BIN)/lint-imports

check: lint format-check types layers ## Everything but the tests

schema: $(VENV)/.run-stamp ## Write the JSON schemas of coatcheck.toml, events and scenarios
	@$(BIN)/coatcheck config schema > docs/reference/coatcheck.schema.json
	@$(BIN)/coatcheck events schema --out docs/reference/events
	@$(BIN)/coatcheck bench schema > docs/reference/scenario.schema.json

soak-cluster: $(VENV)/.dev-stamp ## Kill leaders of a NATS cluster under 20 runs for 4 minutes
	@$(BIN)/python -m tests.chaos.soak_cluster

secrets: $(VENV)/.run-stamp ## Make the certificates, keys and passwords for docker-compose.yml
	@deploy/compose/prepare.sh secrets data

bench: $(VENV)/.dev-stamp ## Measure speed and size, as ratios
	@$(BIN)/python -m tests.benchmarks

pins: $(VENV)/.dev-stamp ## Write the installed versions to constraints.txt
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude coatcheck; } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(VENV)/.run-stamp $(VENV)/.dev-stamp

clean: ## Stop the stack, remove its data, the environment and the caches
	@if test -x $(BIN)/coatcheck; then $(BIN)/coatcheck down; fi
	@rm -rf "$(COATCHECK_DATA_DIR)" $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
