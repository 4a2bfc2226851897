# The usual verbs. `make setup` once, then any of the others; PYTHON picks the interpreter of the environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test long style quality train check build

setup:  ## environment with everything for development
	$(PYTHON) -m venv .venv && $(BIN)/pip install -e '.[dev]' && $(BIN)/pre-commit install

test:  ## the suite, about ten minutes at most
	$(BIN)/python -m pytest

long:  ## tests of minutes: every timm module, kills, faults of the Hub
	$(BIN)/python -m pytest -m long

style:  ## mends formatting and imports
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

quality:  ## checks formatting, imports and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/mypy train.py validate.py hub/push.py

train:  ## the main job on the data that ship
	$(BIN)/accelerate launch train.py

check: quality test long

build:  ## wheel and source distribution in dist/
	$(BIN)/pip install -q build && $(BIN)/python -m build
