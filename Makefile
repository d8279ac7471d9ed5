# The course's commands. Each does its own set-up: a virtual environment in .venv, torch
# first, then this repository with the versions of constraints.txt. A second call is quick:
# stamp files in .venv remember what is installed, until pyproject.toml or constraints.txt
# changes. All paths are relative, so the checkout's folder may have spaces in its name.

PYTHON      ?= python3
VENV        ?= .venv
# pip's --index-url for torch alone. Empty: wherever pip looks by default.
TORCH_INDEX ?=
PIP_ARGS    ?=
LAB_ARGS    ?=
WORKERS     ?= 2
NOTEBOOK    ?= notebooks/00_the_whole_game.ipynb

# make test-browser
CHROMIUM    ?= /usr/bin/chromium
SHOTS       ?=
BROWSER_TESTS ?= tests_browser
# make test-floors: the oldest that pyproject.toml allows, and what they alone still need
FLOORS      := ipywidgets==7.7.1 anywidget==0.9.0 ipython_genutils==0.2.0

# make distill
PROFILE     ?= laptop
DATA        ?=
OUTPUT      ?=
ARGS        ?=

PY  := $(VENV)/bin/python
PIP := "$(PY)" -m pip --disable-pip-version-check install $(PIP_ARGS) -c constraints.txt

# One torch thread in each test worker: workers share the cores, and results repeat.
# COMET_* settings of the reader's shell must not change what is tested.
TEST_ENV := env -u COMET_DATA -u COMET_SEED -u COMET_STRICT COMET_PROFILE=tiny \
            HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# In PYTHONPATH: notebooks then reach no network, as the unit tests do not (tests/offline).
OFFLINE := $(CURDIR)/tests/offline

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help lab test lint types unit nbval browser test-browser test-floors test-colab test-binder \
        site distill format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Variables: PYTHON (now: $(PYTHON)), TORCH_INDEX (a package index for torch alone,"
	@echo "  such as PyTorch's CPU wheel index: see pytorch.org's install page), LAB_ARGS, WORKERS;"
	@echo "  for make distill: DATA, PROFILE, OUTPUT, ARGS."

lab: $(VENV)/.ready-lab ## set up, then open the course in JupyterLab
	"$(PY)" -m jupyterlab $(LAB_ARGS) "$(NOTEBOOK)"

test: lint types unit nbval ## set up, then lint, types, unit tests, notebooks

lint: $(VENV)/.ready-test ## of make test: ruff, code and notebooks
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .

types: $(VENV)/.ready-test ## of make test: mypy
	"$(PY)" -m mypy

unit: $(VENV)/.ready-test ## of make test: the unit tests
	$(TEST_ENV) "$(PY)" -m pytest -n $(WORKERS) tests

nbval: $(VENV)/.ready-test ## of make test: every notebook, on the tiny profile
	home="$$(mktemp -d)" && trap 'rm -rf "$$home"' EXIT && \
	$(TEST_ENV) COMET_HOME="$$home" PYTHONPATH="$(OFFLINE)" "$(PY)" -m pytest \
	    -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    -n $(WORKERS) --dist loadscope notebooks/*.ipynb

browser: $(VENV)/.ready-browser # what test-browser needs, and no more

test-browser: browser ## set up, then try lens and widgets in Chromium and JupyterLab (SHOTS=dir keeps pictures)
	$(TEST_ENV) CHROMIUM="$(CHROMIUM)" $(if $(SHOTS),COMET_SHOTS="$(SHOTS)") \
	    "$(PY)" -m pytest $(BROWSER_TESTS)

test-floors: $(VENV)/.ready-floors ## set up, then test the lens under the oldest ipywidgets and anywidget
	PYTHONPATH="$(VENV)/floors" $(TEST_ENV) "$(PY)" -m pytest tests/test_lens_*.py

# Colab's versions lie over those of $(VENV), in an environment of their own that sees the rest.
COLAB := $(VENV)/colab
test-colab: $(VENV)/.ready-colab ## set up, then unit tests and notebooks with Google Colab's versions
	$(TEST_ENV) PYTHONPATH="$(CURDIR)" "$(COLAB)/bin/python" -m pytest -n $(WORKERS) tests
	home="$$(mktemp -d)" && trap 'rm -rf "$$home"' EXIT && \
	$(TEST_ENV) COMET_HOME="$$home" PYTHONPATH="$(CURDIR):$(OFFLINE)" "$(COLAB)/bin/python" -m pytest \
	    -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    -n $(WORKERS) --dist loadscope notebooks/*.ipynb

# binder/postBuild as Binder runs it, in an environment with pip alone; then what it installed
# is used away from the checkout, with the packages of $(VENV) in the place of conda's.
test-binder: $(VENV)/.ready-test ## set up, then run binder/postBuild in a new environment and use the result
	new="$$(mktemp -d)" && trap 'rm -rf "$$new"' EXIT && \
	"$(PY)" -m venv "$$new" && \
	PATH="$$new/bin:$$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 binder/postBuild && \
	"$(PY)" tools/share_packages.py "$$new" && cd "$$new" && \
	$(TEST_ENV) bin/python -c 'import comet_lib, sys; assert comet_lib.__file__.startswith(sys.prefix)' && \
	$(TEST_ENV) bin/python -m comet_lib predict \
	    "$$(bin/python -c 'from comet_lib.profiles import ASSETS; print(ASSETS / "teacher")')" \
	    "Kitabu hiki kinanifurahisha."

site: $(VENV)/.ready-site ## set up, then build the course's website in build/site and check its links
	$(TEST_ENV) "$(PY)" tools/build_site.py

# After make lab or make test nothing is missing: no second install, which would need a network.
RUN := $(or $(firstword $(wildcard $(VENV)/.ready-lab $(VENV)/.ready-test)),$(VENV)/.ready-run)
distill: $(RUN) ## set up, then distil and print the result table (DATA=dir PROFILE=laptop)
	"$(PY)" -m comet_lib distill --profile "$(PROFILE)" $(if $(DATA),--data "$(DATA)") \
	    $(if $(OUTPUT),--output "$(OUTPUT)") $(ARGS)

format: $(VENV)/.ready-test ## let ruff put code and notebooks in order
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

clean: ## remove the virtual environment, builds and caches (results in runs/ stay)
	rm -rf "$(VENV)" build dist comet_course.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up ---------------------------------------------------------------------------

EXTRAS_run  :=
EXTRAS_lab  := [notebooks,export]
EXTRAS_test := [notebooks,dev,export]
EXTRAS_site := [notebooks,dev,site]

$(VENV)/.ready-venv:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "This course needs Python 3.11 or newer, and '$(PYTHON)' is not that:" \
	         "name one with PYTHON, for example: make lab PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	@touch "$@"

# torch first and by itself, so that TORCH_INDEX concerns nothing else.
$(VENV)/.ready-torch: $(VENV)/.ready-venv constraints.txt
	@if [ "$$(uname -s)" = Linux ] && [ -z "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null && \
	    "$(PY)" -c 'import importlib.util as i, sys; sys.exit(bool(i.find_spec("torch")))'; then \
	    echo "No NVIDIA GPU seen. If pip now starts to download a CUDA torch (some GB), stop it" \
	         "and give TORCH_INDEX=address of PyTorch's CPU wheel index: see README.md."; fi
	$(PIP) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") torch
	@touch "$@"

# Playwright drives Debian's Chromium; a browser of its own is not downloaded.
$(VENV)/.ready-browser: $(VENV)/.ready-test
	@test -x "$(CHROMIUM)" || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || { \
	    echo "No Chromium at $(CHROMIUM): install it (Debian: apt-get install chromium), or name" \
	         "one: make test-browser CHROMIUM=/path/to/chrome" >&2; exit 1; }
	$(PIP) playwright
	@touch "$@"

# Packages of $(VENV) are found through a .pth file; pip takes Colab's where they differ.
$(VENV)/.ready-colab: $(VENV)/.ready-test colab/versions.txt
	"$(PY)" -m venv --clear "$(COLAB)"
	"$(PY)" tools/share_packages.py "$(COLAB)"
	grep -v '^torch==' colab/versions.txt > "$(COLAB)/versions.txt"
	"$(COLAB)/bin/python" -m pip --disable-pip-version-check install --no-compile $(PIP_ARGS) \
	    -r "$(COLAB)/versions.txt"
	@touch "$@"

# Beside the tested versions, not in their place: PYTHONPATH comes first.
$(VENV)/.ready-floors: $(VENV)/.ready-test
	$(subst -c constraints.txt,,$(PIP)) --no-deps --upgrade --target "$(VENV)/floors" $(FLOORS)
	@touch "$@"

$(VENV)/.ready-%: $(VENV)/.ready-torch pyproject.toml constraints.txt
	$(PIP) -e ".$(EXTRAS_$*)"
	@touch "$@"
