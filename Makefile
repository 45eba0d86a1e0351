# One line each: the command line does the work.
PYTHON ?= python3
PROJECT ?= examples/digits/edgeprune.toml
TARGET ?= local
NAME ?= image
BIN := .venv/bin
# Files of tests are shared by processes, as many as cores but four at most.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-slow test-board test-models board lint run example check deploy rollback releases doctor clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/.installed ## make .venv with everything; nothing to do when it is there

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.installed ## run the main job: the digits network at half its latency
	@$(BIN)/edgeprune demo --target $(TARGET)

test: .venv/.installed ## run the tests
	@$(BIN)/python -m pytest -m "not slow" $(SHARED)

test-slow: .venv/.installed ## run those that take long
	@$(BIN)/python -m pytest -m slow $(SHARED)

test-board: .venv/.installed ## run the tests that need the virtual board (qemu)
	@$(BIN)/python -m pytest tests/board

test-models: .venv/.installed ## cut and compile every architecture of docs/models.md
	@$(BIN)/python -m pytest tests/models

board: .venv/.installed ## start the virtual board
	@$(BIN)/edgeprune board up

lint: .venv/.installed ## check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

run: .venv/.installed ## run PROJECT on TARGET
	@$(BIN)/edgeprune run --project $(PROJECT) --target $(TARGET)

example: .venv/.installed ## run the example NAME (image, speech, language, control) on TARGET, with the data in DATA
	@EDGEPRUNE_DATA=$(DATA) $(BIN)/edgeprune run --project examples/$(NAME)/edgeprune.toml --target $(TARGET)

deploy: .venv/.installed ## put PROJECT into service on TARGET
	@$(BIN)/edgeprune deploy --project $(PROJECT) --target $(TARGET)

check: .venv/.installed ## is PROJECT still inside its budgets on TARGET, and no slower than its baseline?
	@$(BIN)/edgeprune check --project $(PROJECT) --target $(TARGET)

rollback: .venv/.installed ## put the release before it back
	@$(BIN)/edgeprune rollback --project $(PROJECT) --target $(TARGET)

releases: .venv/.installed ## what is in service on TARGET
	@$(BIN)/edgeprune releases --target $(TARGET)

doctor: .venv/.installed ## is everything in place?
	@$(BIN)/edgeprune doctor $(TARGET) --project $(PROJECT)

clean: ## remove what runs and tests left
	rm -rf examples/*/runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
