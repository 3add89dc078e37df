# Everything a person, a hook or CI runs. Needs Python 3.11+, make and a C library, nothing else.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
TESTS ?= tests
DATA_DIR ?= .coatcheck
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.PHONY: help demo up down status test lint types layers format format-check check bench pins clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp is as new as the last set-up; pyproject and the pins make it out of date.
$(VENV)/.run-stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11" >&2; echo "hint: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) …" >&2
	@$(PIP) install -c constraints.txt -e '.[local]'
	@touch $@

$(VENV)/.dev-stamp: $(VENV)/.run-stamp
	@echo "adding the development tools to $(VENV) …" >&2
	@$(PIP) install -c constraints.txt -e '.[local,dev]'
	@touch $@

demo: $(VENV)/.run-stamp ## Run one feature through the five agents and show it
	@$(BIN)/coatcheck demo --data-dir $(DATA_DIR)

up: $(VENV)/.run-stamp ## Start the local stack in the background
	@$(BIN)/coatcheck up --detach --data-dir $(DATA_DIR)

down: $(VENV)/.run-stamp ## Stop the local stack; its data stay
	@$(BIN)/coatcheck down --data-dir $(DATA_DIR)

status: $(VENV)/.run-stamp ## Show what runs and where
	@$(BIN)/coatcheck status --data-dir $(DATA_DIR)

test: $(VENV)/.dev-stamp ## Run the tests on real servers (TESTS=path, WORKERS=2)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

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

bench: $(VENV)/.dev-stamp ## Measure speed and size, as ratios
	@$(BIN)/python -m tests.benchmarks

pins: $(VENV)/.dev-stamp ## Write the installed versions to constraints.txt
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude coatcheck; } > constraints.new
	@mv constraints.new constraints.txt
	@touch $(VENV)/.run-stamp $(VENV)/.dev-stamp

clean: ## Stop the stack, remove its data, the environment and the caches
	@if test -x $(BIN)/coatcheck; then $(BIN)/coatcheck down --data-dir $(DATA_DIR); fi
	@rm -rf $(DATA_DIR) $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
