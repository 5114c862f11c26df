# Everything happens in .venv; the environment is made once and again when its definition changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PROMPT ?= a red circle moves left on a white background

.PHONY: help demo test lint test-gpu test-browser clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed  ## turn a prompt into a guided video with the model that ships in the package
	$(BIN)/guidon generate "$(PROMPT)" --seed 7 --out outputs/demo

test: $(VENV)/.installed-dev  ## all tests that need neither a GPU nor released weights
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev  ## ruff, pyright and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test-gpu: $(VENV)/.installed-dev  ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

test-browser: $(VENV)/.installed-dev  ## tests of the report in Chromium, from Debian's package or CHROMIUM=path
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -q -m browser

clean:  ## remove the environment and caches; weights and outputs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Guidon needs CPython 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
