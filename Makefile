# Common commands. Run `make setup` first; PYTHON selects the interpreter of the environment.
PYTHON ?= python3
BIN := .venv/bin
QUICK := layers card changed_settings checkpoints data data_faults data_sources numbers run_faults segmentation method

.PHONY: setup quick test long style quality train check docs build

setup:  ## create the development environment
	$(PYTHON) -m venv .venv && $(BIN)/pip install -e '.[dev]' && $(BIN)/pre-commit install

quick:  ## tests for the inner loop, under a minute
	$(BIN)/python -m pytest $(QUICK:%=tests/test_%.py) -k "not trajectory"

test:  ## the default test suite
	$(BIN)/python -m pytest

long:  ## tests that take minutes: every timm module, kill -9, Hub faults
	$(BIN)/python -m pytest -m long

style:  ## fix formatting and imports
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

quality:  ## check formatting, imports and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy train.py validate.py hub/push.py

train:  ## train with the default settings on the data that ships
	$(BIN)/accelerate launch train.py

check: quality test long

docs:  ## build the documentation site in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build:  ## build the wheel and the source distribution in dist/
	$(BIN)/pip install -q build && $(BIN)/python -m build
