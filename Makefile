# make audit [DATASET=folder] [PREDICT=train]   audit the built-in sample, or your own images
# make test                                     lint, types, every quick test
# make test-all                                 the slow tests too
PYTHON ?= python3
PREDICT ?= train
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: audit test test-all lint clean

audit: .venv/installed
ifdef DATASET
	$(BIN)/fixaudit run "$(DATASET)" --predict $(PREDICT)
else
	$(BIN)/fixaudit demo
endif

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

test-all: lint
	$(BIN)/pytest -m ""

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fixaudit needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	@echo "installing into .venv (torch is large: some minutes the first time)"
	$(PIP) -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
