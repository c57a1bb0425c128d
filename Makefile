# Two commands matter: `make demo` (run the cases) and `make test`. Both set everything up by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DVC := $(BIN)/dvc
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONHASHSEED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check bench lab verify export lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv with the locked dependencies

# Each stamp comes last: an interrupted set-up starts clean the next time.
$(VENV)/.locked: requirements/lock.txt requirements/build.txt
	@rm -rf $(VENV)  # first, so that PYTHON is never the one in it
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "mktai-kit needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Mend: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once; over a gigabyte, a minute or more) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r requirements/build.txt  # what comes as source is built with it
	@$(BIN)/python -m pip install --quiet --no-compile --use-pep517 --no-build-isolation --require-hashes -r requirements/lock.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.locked pyproject.toml
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# The runs to show are those of cases that end in -demo: a new case joins through params.yaml, and brings its world. A failed gate hides no other case.
demo: setup ## run the case studies, end to end, and say what they found
	@runs=$$($(DVC) stage list --name-only | grep -E -- '^(case|report|gate)@.*-demo$$'); done=0; \
	if $(DVC) status --quiet $$runs 2>/dev/null; then echo "All is up to date."; else $(DVC) repro --keep-going $$runs || done=$$?; fi; \
	$(BIN)/mktai found $$(printf '%s\n' $$runs | sed -n 's|^case@|data/runs/|p') && exit $$done

test: setup ## check everything: export freshness, lint, notebooks, tests
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -n 2 --dist worksteal

check: setup ## export freshness and lint, without the tests
	@$(BIN)/python tests/freshness.py
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check tests

bench: setup ## how long simulated companies and a year of clicks take, against the floors of writing and reading (minutes; several GB of disk)
	@$(BIN)/python tests/bench.py
	@$(BIN)/python tests/bench_clicks.py

lab: setup ## open the course map in JupyterLab
	@$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" 2>/dev/null  # no calls home
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

verify: setup ## run the smoke pipeline again elsewhere and compare every output by hash
	@$(BIN)/mktai verify

export: setup ## write mktai_kit/ and README.md from the notebooks
	@$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(BIN)/python tests/freshness.py --write

lock: ## pin all dependencies anew (needs uv)
	@uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --extra dev pyproject.toml requirements/lock.in \
	  --override requirements/overrides.txt --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  --output-file requirements/lock.txt
	@sed -n '/^setuptools==/,/[^\\]$$/p' requirements/lock.txt > requirements/build.txt

clean: ## remove the environment and everything that runs wrote (downloads stay)
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .dvc/cache .dvc/tmp data/runs data/raw
