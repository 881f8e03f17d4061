# Every target sets up .venv first (tools/setup_env.py: exact pins, once), then runs from it.
# Another interpreter: PYTHON=python3.12 make test
.DEFAULT_GOAL := help
.PHONY: help setup demo picture examples docs test slow soak check format lock release-check clean
.SUFFIXES:

candidates := python3 python3.13 python3.12 python3.11 python
supported := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(candidates); do "$$p" -c '$(supported)' 2>/dev/null && { echo "$$p"; break; }; done)
bin := .venv/bin

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: ## Create or update .venv from requirements.lock
ifeq ($(strip $(PYTHON)),)
	@echo "setup: found no Python 3.11 or newer (tried: $(candidates))." >&2
	@echo "       Install one, or name it: PYTHON=/path/to/python3.11 make $(or $(MAKECMDGOALS),setup)" >&2
	@exit 1
else
	@"$(PYTHON)" -c "" 2>/dev/null || { echo "setup: PYTHON=$(PYTHON) does not run here. Name one that does." >&2; exit 1; }
	@"$(PYTHON)" tools/setup_env.py
endif

demo: setup ## Train a recommender on real clicks while the pipeline tunes itself
	@$(bin)/python -m examples.open_bandit.demo

picture: demo ## The demo, and README's picture anew from its log (let nothing else run meanwhile)
	@$(bin)/python tools/draw_run.py

examples: setup ## Every example in full, one after the other (about ten minutes)
	@$(bin)/python tools/run_examples.py

docs: setup ## Build the documentation into site/ (its tools go into .venv-docs)
	@$(bin)/python tools/build_docs.py

test: setup ## The tests, less those marked slow, on up to four cores
	@$(bin)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

slow: setup ## The tests marked slow
	@$(bin)/python -m pytest -q -m slow

soak: setup ## Half an hour of faults, counted (SOAK_S=120: two minutes); exits 1 if a promise broke
	@$(bin)/python -m tests.faults.soak

check: setup ## Format, lint, types, the wall between data and decisions
	@$(bin)/python tools/check.py

format: setup ## Let ruff rewrite what it can
	@$(bin)/ruff check --fix --quiet . ; $(bin)/ruff format .

lock: ## Remake requirements.lock from pyproject.toml (needs the registry, some minutes)
	@"$(PYTHON)" tools/make_lock.py

release-check: setup ## Build wheel and sdist, use them in an empty environment (needs the registry, some minutes)
	@$(bin)/python tools/release_check.py

clean: ## Remove .venv and every cache
	rm -rf .venv .venv.lock .venv-docs build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
