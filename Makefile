# The course's commands. Each sets up what it needs: a virtual environment in .venv, torch
# first, then this repository with the versions in constraints.txt. Stamp files in .venv record
# what is installed, so a second call starts at once until pyproject.toml or constraints.txt
# changes. All paths are relative, so the path of your checkout may contain spaces.

PYTHON      ?= python3
VENV        ?= .venv
# Where torch comes from (pip's --index-url). Empty: tools/torch_index.py chooses.
TORCH_INDEX ?=
PIP_ARGS    ?=
LAB_ARGS    ?=
WORKERS     ?= 2
NOTEBOOK    ?= notebooks/00_the_whole_game.ipynb

# make test-browser
CHROMIUM    ?= /usr/bin/chromium
SHOTS       ?=
BROWSER_TESTS ?= tests_browser
# make test-floors: the oldest versions that pyproject.toml allows, and what only they need
FLOORS      := ipywidgets==7.7.1 anywidget==0.9.0 ipython_genutils==0.2.0

# make site, playground, test-browser: a folder that make distill wrote, for the playground's students
RUN         ?=

# make distill
PROFILE     ?= laptop
DATA        ?=
OUTPUT      ?=
ARGS        ?=

PY  := $(VENV)/bin/python
PIP := "$(PY)" -m pip --disable-pip-version-check install $(PIP_ARGS) -c constraints.txt

# One torch thread per test worker: workers share the cores, and results repeat.
# COMET_* settings in your shell must not change what is tested.
TEST_ENV := env -u COMET_DATA -u COMET_SEED -u COMET_STRICT COMET_PROFILE=tiny \
            HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# In PYTHONPATH, this cuts notebooks off from the network, as unit tests are (tests/offline).
OFFLINE := $(CURDIR)/tests/offline
# A worker that runs out of unit tests takes some from the other. A notebook stays with one
# worker, and the notebooks with the most cells start first.
UNIT  := -m pytest -n $(WORKERS) --dist worksteal tests
NBVAL := -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
         -n $(WORKERS) --dist loadscope notebooks/*.ipynb

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help lab test lint types unit nbval browser test-browser test-floors test-colab test-binder \
        site playground distill format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  Every command sets up what it needs. Variables: PYTHON (now: $(PYTHON)), LAB_ARGS,"
	@echo "  WORKERS, TORCH_INDEX (an index for torch; without an NVIDIA GPU, Linux gets a CPU build);"
	@echo "  for make distill: DATA, PROFILE, OUTPUT, ARGS."

# make test installs all that make lab needs, and make lab all that make distill needs.
LAB := $(firstword $(wildcard $(VENV)/.ready-test) $(VENV)/.ready-lab)
READY := $(firstword $(wildcard $(VENV)/.ready-test $(VENV)/.ready-lab) $(VENV)/.ready-run)

lab: $(LAB) ## open the course in JupyterLab
	"$(PY)" -m jupyterlab $(LAB_ARGS) "$(NOTEBOOK)"

# Without its cache mypy takes half a minute on one core, so it runs beside the unit tests.
test: lint ## run every check: lint, types, unit tests and all notebooks
	@$(MAKE) types & types=$$!; $(MAKE) unit && wait $$types && $(MAKE) nbval

lint: $(VENV)/.ready-test ## part of make test: ruff on code and notebooks
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .

types: $(VENV)/.ready-test ## part of make test: mypy
	"$(PY)" -m mypy

unit: $(VENV)/.ready-test ## part of make test: the unit tests
	$(TEST_ENV) "$(PY)" $(UNIT)

nbval: $(VENV)/.ready-test ## part of make test: every notebook, on the tiny profile
	home="$$(mktemp -d)" && trap 'rm -rf "$$home"' EXIT && \
	$(TEST_ENV) COMET_HOME="$$home" PYTHONPATH="$(OFFLINE)" "$(PY)" $(NBVAL)

# What the playground loads; npm writes the file that stands for it.
NPM := playground/node_modules/.package-lock.json
$(NPM): playground/package-lock.json
	cd playground && npm ci --ignore-scripts --no-audit --no-fund
	@touch "$@"

browser: $(VENV)/.ready-browser # only what test-browser needs

test-browser: browser $(if $(shell command -v npm),$(NPM)) ## test the lens, widgets and playground in Chromium and JupyterLab (SHOTS=dir keeps screenshots)
	$(TEST_ENV) CHROMIUM="$(CHROMIUM)" $(if $(RUN),COMET_RUN="$(RUN)") $(if $(SHOTS),COMET_SHOTS="$(SHOTS)") \
	    "$(PY)" -m pytest $(BROWSER_TESTS)

test-floors: $(VENV)/.ready-floors ## test the lens with the oldest ipywidgets and anywidget
	PYTHONPATH="$(VENV)/floors" $(TEST_ENV) "$(PY)" -m pytest tests/test_lens_*.py

# Colab's versions shadow those of $(VENV), in an environment of their own that sees the rest.
COLAB := $(VENV)/colab
test-colab: $(VENV)/.ready-colab ## run unit tests and notebooks with Google Colab's versions
	$(TEST_ENV) PYTHONPATH="$(CURDIR)" "$(COLAB)/bin/python" $(UNIT)
	home="$$(mktemp -d)" && trap 'rm -rf "$$home"' EXIT && \
	$(TEST_ENV) COMET_HOME="$$home" PYTHONPATH="$(CURDIR):$(OFFLINE)" "$(COLAB)/bin/python" $(NBVAL)

# Run binder/postBuild as Binder does, in an environment with nothing but pip; then use what it
# installed from outside the checkout, with the packages of $(VENV) instead of conda's.
test-binder: $(VENV)/.ready-test ## run binder/postBuild in a new environment and use the result
	new="$$(mktemp -d)" && trap 'rm -rf "$$new"' EXIT && \
	"$(PY)" -m venv "$$new" && \
	PATH="$$new/bin:$$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 binder/postBuild && \
	"$(PY)" tools/share_packages.py "$$new" && cd "$$new" && \
	$(TEST_ENV) bin/python -c 'import comet_lib, sys; assert comet_lib.__file__.startswith(sys.prefix)' && \
	$(TEST_ENV) bin/python -m comet_lib predict \
	    "$$(bin/python -c 'from comet_lib.profiles import ASSETS; print(ASSETS / "teacher")')" \
	    "Kitabu hiki kinanifurahisha."

site: $(VENV)/.ready-site $(NPM) ## build the website in build/site and check its links (RUN=dir: its students)
	$(TEST_ENV) "$(PY)" tools/build_site.py $(if $(RUN),--run "$(RUN)")

playground: $(VENV)/.ready-test $(NPM) ## build only the site's playground (RUN=dir)
	$(TEST_ENV) "$(PY)" tools/build_playground.py $(if $(RUN),--run "$(RUN)")

distill: $(READY) ## distil and print the result table (DATA=dir PROFILE=laptop)
	"$(PY)" -m comet_lib distill --profile "$(PROFILE)" $(if $(DATA),--data "$(DATA)") \
	    $(if $(OUTPUT),--output "$(OUTPUT)") $(ARGS)

format: $(VENV)/.ready-test ## format code and notebooks with ruff, and apply its fixes
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
	    echo "This course needs Python 3.11 or newer, but '$(PYTHON)' is older or missing." \
	         "Name another one, for example: make lab PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
	@touch "$@"

# torch first and by itself, so that its index serves nothing else.
$(VENV)/.ready-torch: $(VENV)/.ready-venv constraints.txt
	@options="$$(TORCH_INDEX="$(TORCH_INDEX)" "$(PY)" tools/torch_index.py $(PIP_ARGS))" && \
	    set -x && $(PIP) $$options torch
	@touch "$@"

# Playwright drives Debian's Chromium instead of downloading a browser.
$(VENV)/.ready-browser: $(VENV)/.ready-test
	@test -x "$(CHROMIUM)" || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || { \
	    echo "There is no Chromium at $(CHROMIUM). Install it (Debian: apt-get install chromium)," \
	         "or name another: make test-browser CHROMIUM=/path/to/chrome" >&2; exit 1; }
	$(PIP) playwright
	@touch "$@"

# A .pth file makes the packages of $(VENV) visible; pip installs Colab's where they differ.
$(VENV)/.ready-colab: $(VENV)/.ready-test colab/versions.txt
	"$(PY)" -m venv --clear "$(COLAB)"
	"$(PY)" tools/share_packages.py "$(COLAB)"
	grep -v '^torch==' colab/versions.txt > "$(COLAB)/versions.txt"
	"$(COLAB)/bin/python" -m pip --disable-pip-version-check install --no-compile $(PIP_ARGS) \
	    -r "$(COLAB)/versions.txt"
	@touch "$@"

# Beside the tested versions, which PYTHONPATH shadows.
$(VENV)/.ready-floors: $(VENV)/.ready-test
	$(subst -c constraints.txt,,$(PIP)) --no-deps --upgrade --target "$(VENV)/floors" $(FLOORS)
	@touch "$@"

# The first of these installs talks; a later one adds a few packages, and only says so.
LATER := $(firstword $(foreach set,run lab test site,$(wildcard $(VENV)/.ready-$(set))))
$(VENV)/.ready-%: $(VENV)/.ready-torch pyproject.toml constraints.txt
	$(if $(LATER),@echo "Adding what make $* needs to $(VENV) ...")
	$(if $(LATER),@)$(PIP) $(if $(LATER),--quiet) -e ".$(EXTRAS_$*)"
	@touch "$@"
