PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
BIN := .venv/bin
RUN := runs/quickstart
PIP := $(BIN)/python -m pip install --progress-bar off --editable
ON_ONE_LINE := while read -r line; do printf '\r\033[K%.79s' "$$line"; done; echo

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart lint format test test-all notebooks docs wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing eenet and what it needs (torch, lightning, timm, ...) into .venv; a few minutes'
	@$(PIP) . | $(ON_ONE_LINE)
	touch $@

.venv/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing eenet and what its tests need into .venv; a few minutes'
	@$(PIP) '.[dev]' | $(ON_ONE_LINE)
	touch .venv/installed $@

install: .venv/installed  ## make .venv with the package

dev: .venv/installed-dev  ## make .venv with what the tests need too

quickstart: .venv/installed  ## exits on the embedded digits over three seeds, in about a minute
	rm -rf $(RUN)
	$(BIN)/eenet quickstart --out $(RUN)

lint: .venv/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: .venv/installed-dev  ## the default tests, 4 to 8 minutes on two cores
	$(BIN)/python -m pytest

test-all: .venv/installed-dev  ## the slow studies too
	$(BIN)/python -m pytest -m ''

notebooks: .venv/installed-dev  ## run the notebooks whole and render them into docs/notebooks
	$(BIN)/python notebooks/render.py

docs: .venv/installed-dev  ## build the documentation into build/docs, without a warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: .venv/installed-dev  ## build dist/*.whl, with the configurations inside
	$(BIN)/python -m build

clean:  ## remove what the tools leave, not runs or data
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
