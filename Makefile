PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help install dev quickstart lint format test test-all notebooks docs wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing eenet and what it needs (torch, lightning, timm, ...) into .venv; a few minutes'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing eenet and what its tests need into .venv; a few minutes'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/installed $@

install: .venv/installed  ## make .venv with the package

dev: .venv/installed-dev  ## make .venv with what the tests need too

quickstart: .venv/installed  ## train and test JEI-DNN on the embedded digits
	rm -rf $(RUN)
	$(BIN)/eenet fit --config configs/digits/vit_backbone.yaml --trainer.default_root_dir $(RUN)/backbone
	$(BIN)/eenet fit --config configs/digits/vit_jei_dnn.yaml --trainer.default_root_dir $(RUN) \
		--model.init_args.backbone_checkpoint $(RUN)/backbone
	$(BIN)/eenet test --config $(RUN)/config.yaml

lint: .venv/installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: .venv/installed-dev  ## the default tests, about 10 minutes on two cores
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
