# One line each: the command line does the work.
PYTHON ?= python3
PROJECT ?= examples/digits/edgeprune.toml
TARGET ?= local
NAME ?= image
BIN := .venv/bin
# One process for each core, four at most. A process takes whole test files.
SHARED := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo docs docs-serve test test-slow test-nightly test-board test-models coverage board lint pictures run example check deploy rollback releases doctor clean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: .venv/.installed ## install edgeprune with all extras into .venv

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.installed ## prune the digits network to half its latency
	@$(BIN)/edgeprune demo --target $(TARGET)

test: .venv/.installed ## run the tests, except the slow ones
	@$(BIN)/python -m pytest -m "not slow" $(SHARED)

test-slow: .venv/.installed ## run the slow tests except the nightly ones, of TESTS if given
	@$(BIN)/python -m pytest -m "slow and not nightly" $(SHARED) $(TESTS)

test-nightly: .venv/.installed ## run the slow tests that repeat a promise or take minutes
	@$(BIN)/python -m pytest -m nightly $(SHARED)

test-board: .venv/.installed ## run the tests on the virtual board (needs qemu)
	@$(BIN)/python -m pytest tests/board

test-models: .venv/.installed ## cut and compile every architecture of docs/models.md
	@$(BIN)/python -m pytest tests/models

coverage: .venv/.installed ## run the tests of make test and print which lines they reach
	@rm -rf build/covered && mkdir -p build/covered
	@COVERED=$(CURDIR)/build/covered PYTHONPATH=tests/covered $(BIN)/python -m pytest -m "not slow" $(SHARED) -W "ignore:Module already imported"
	@$(BIN)/python tests/covered/covered.py build/covered

board: .venv/.installed ## start the virtual board
	@$(BIN)/edgeprune board up

docs: .venv/.installed ## build the site of the documentation into build/site
	@$(BIN)/python docs/site/website.py

docs-serve: docs ## show the site on http://127.0.0.1:8000
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

lint: .venv/.installed ## check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

pictures: .venv/.installed ## draw the pictures of the README into docs/pictures
	@$(BIN)/python benchmarks/pictures.py

run: .venv/.installed ## run the pipeline for PROJECT on TARGET
	@$(BIN)/edgeprune run --project $(PROJECT) --target $(TARGET)

example: .venv/.installed ## run the example NAME (image, detection, segmentation, speech, language, control, onnx, keras) on TARGET with the data in DATA
	@EDGEPRUNE_DATA=$(DATA) $(BIN)/edgeprune run --project examples/$(NAME)/edgeprune.toml --target $(TARGET)

deploy: .venv/.installed ## deploy PROJECT to TARGET
	@$(BIN)/edgeprune deploy --project $(PROJECT) --target $(TARGET)

check: .venv/.installed ## check PROJECT on TARGET against its budgets and its baseline
	@$(BIN)/edgeprune check --project $(PROJECT) --target $(TARGET)

rollback: .venv/.installed ## put the previous release of PROJECT back into service on TARGET
	@$(BIN)/edgeprune rollback --project $(PROJECT) --target $(TARGET)

releases: .venv/.installed ## list the releases on TARGET
	@$(BIN)/edgeprune releases --target $(TARGET)

doctor: .venv/.installed ## check the installation, PROJECT and TARGET, and print a fix for each problem
	@$(BIN)/edgeprune doctor $(TARGET) --project $(PROJECT)

clean: ## delete the files that runs and tests leave
	rm -rf examples/*/runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
