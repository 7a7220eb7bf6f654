# `make evolve` and `make test` set everything up by themselves, in .venv/
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: setup
setup: $(READY)  ## make .venv/ with pinned versions

.PHONY: evolve
evolve: $(READY)  ## search small hybrids on this machine: profile, evolve, report (ARGS="--seed 1" …)
	$(BIN)/archsearch evolve $(ARGS)

.PHONY: check
check: $(READY)  ## ruff, mypy, import directions, file sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest tests/test_budget.py

.PHONY: test
test: check  ## everything that needs no GPU
	$(BIN)/pytest -n 2 -m "not gpu" $(ARGS)

.PHONY: gpu
gpu: $(READY)  ## the tests that need a GPU
	$(BIN)/pytest -m gpu $(ARGS)

.PHONY: bench
bench: $(READY)  ## conformance tests, then training speed of every operator beside attention
	$(BIN)/pytest tests/operators/test_conformance.py
	$(BIN)/python experiments/operator-training/bench.py $(ARGS)

.PHONY: clean
clean:  ## remove the environment and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
