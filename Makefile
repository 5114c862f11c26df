# Everything happens in .venv; the environment is made once and again when its definition changes.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PROMPT ?= a red circle moves left on a white background

.PHONY: help demo test test-reliability lint docs test-wheel test-gpu test-browser test-comfyui test-weights test-ray test-studio test-long test-faults support-matrix lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed  ## turn a prompt into a guided video with the model that ships in the package
	$(BIN)/guidon generate "$(PROMPT)" --seed 7 --upscale 4 --out outputs/demo

TEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q
test: $(VENV)/.installed-dev  ## what Guidon does: all tests that need neither a GPU nor released weights
	$(TEST) --workers auto --ignore tests/faults

test-reliability: $(VENV)/.installed-dev  ## what holds when things break: a sample of damage, faults, kills, races and bombs
	$(TEST) -n auto --dist worksteal tests/faults

lint: $(VENV)/.installed-dev  ## ruff, pyright and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs  ## build the documentation site into site/, which works from disk; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict --clean
	@echo "file://$(CURDIR)/site/index.html"

test-wheel: $(VENV)/.installed-dev  ## build the wheel, install it in an empty environment, generate a video there
	$(BIN)/python -m pytest -q -m wheel tests/packaging

test-gpu: $(VENV)/.installed-dev  ## tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

test-browser: $(VENV)/.installed-dev  ## tests of the report in Chromium, from Debian's package or CHROMIUM=path
	$(PIP) install -q -c constraints.txt --group browser
	$(BIN)/python -m pytest -q -m browser

test-comfyui: $(VENV)/.installed-dev  ## tests of the nodes in ComfyUI's own sampling code, from a checkout: COMFYUI=FOLDER
	@test -d "$(COMFYUI)/comfy" || { echo "Give a checkout of ComfyUI: make test-comfyui COMFYUI=FOLDER"; exit 2; }
	COMFYUI="$(abspath $(COMFYUI))" $(BIN)/python -m pytest -q -m comfyui tests/bridges/comfyui

test-weights: $(VENV)/.installed-dev  ## tests of learned metrics with released weights, from a folder: WEIGHTS=FOLDER
	@test -d "$(WEIGHTS)" || { echo "Give a folder of weights: make test-weights WEIGHTS=FOLDER"; exit 2; }
	GUIDON_WEIGHTS="$(abspath $(WEIGHTS))" $(BIN)/python -m pytest -q -m real_weights tests/metrics/test_real_weights.py

test-ray: $(VENV)/.installed-dev  ## tests of studies on a Ray cluster of two workers on this machine
	$(PIP) install -q -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -q -m ray

# An environment of its own, which takes the libraries of .venv: Gradio needs an older Pillow.
STUDIO := .venv-studio
test-studio: $(STUDIO)/.installed  ## tests of the studio's server, and of its page in Chromium
	$(STUDIO)/bin/python -m pytest -q -m studio tests/studio

test-long: $(VENV)/.installed-dev  ## the cases that `make test` leaves out (minutes)
	$(BIN)/python -m pytest -q -m long -n auto

FAULTS ?= tests/faults
test-faults: $(VENV)/.installed-dev  ## all of test-reliability: damage, I/O faults, kills, races and bombs (hours); write docs/reliability.json and its table
	@GUIDON_FAULTS=long GUIDON_FAULTS_TABLE=docs/reliability.json $(BIN)/python -m pytest -q -m 'faults or not faults' -n auto $(FAULTS); \
	status=$$?; PYTHONPATH=tests $(BIN)/python tests/faults/report.py && exit $$status

VERSIONS ?= 0.35.2 0.36.0 0.37.1 0.38.0 0.39.0 0.40.0 0.41.0 0.42.0
support-matrix: $(VENV)/.installed-dev  ## measure the pipelines of the installed diffusers and of VERSIONS; write the page
	@for version in $(VERSIONS); do \
	  $(PIP) install -q --no-deps --upgrade --target $(VENV)/diffusers-$$version diffusers==$$version && \
	  $(PIP) install -q --target $(VENV)/diffusers-$$version httpx && \
	  PYTHONPATH=$(VENV)/diffusers-$$version $(BIN)/python tests/diffusers_support.py || exit 1; done
	$(BIN)/python tests/diffusers_support.py

lock: $(VENV)/.installed-dev  ## write constraints.txt anew: the newest releases that fit, with the torch of pyproject.toml
	$(PIP) install -q --group lock
	$(BIN)/uv pip compile -q pyproject.toml --extra all --extra ray --group dev --group browser --group docs --universal --no-header --no-annotate -o $(VENV)/lock.txt --upgrade
	{ echo "# The tested environment, written by \`make lock\`. The CUDA libraries that some builds of torch need are left to torch."; \
	  grep -vE '^(nvidia|cuda|triton)' $(VENV)/lock.txt; } > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	$(BIN)/uv pip compile -q pyproject.toml --extra studio --universal --no-header --no-annotate -o $(VENV)/lock-studio.txt --upgrade
	{ head -1 constraints-studio.txt; grep -vE '^(nvidia|cuda|triton)' $(VENV)/lock-studio.txt | grep -vxFf constraints.txt; } > $(VENV)/constraints-studio.txt
	mv $(VENV)/constraints-studio.txt constraints-studio.txt

clean:  ## remove the environment, the site and caches; weights and outputs stay
	rm -rf $(VENV) .venv-studio site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Guidon needs CPython 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[video]'
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q 'pip>=25.1'
	$(PIP) install -q -c constraints.txt -e '.[all]' --group dev
	@touch $@

$(STUDIO)/.installed: $(VENV)/.installed-dev constraints-studio.txt
	$(PIP) install -q -c constraints.txt --group browser
	$(BIN)/python -m venv $(STUDIO)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > \
	  $$($(STUDIO)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
	$(STUDIO)/bin/python -m pip install -q -r constraints-studio.txt
	@touch $@

# The site reads the source and imports nothing of it, so that its packages are all that it needs.
$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q 'pip>=25.1'
	$(PIP) install -q -c constraints.txt --group docs
	@touch $@
