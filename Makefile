# Everything one does with a checkout; `make help` lists it.
# Needs git, make and python3 (3.11 or newer) to begin with; commands land in .venv/bin.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
REAL_READY := $(VENV)/ready-real
# -qq keeps pip's errors and drops its chatter.
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt
ARGS ?=
# Tests wait more than they work: with two at a time they take half as long. Files that start real
# parts come first, each whole at one of the two, which has parts of its own.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps share one .venv and one dpkg lock.
.NOTPARALLEL:
.PHONY: help venv deps debian demo test test-unit test-long bench simulate scenarios faults lint \
	format samples constraints clean

help: ## this list
	@echo "usage: make TARGET [ARGS=...]   (ARGS goes to pytest, the demo or the benchmark)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

venv: $(READY) ## the pinned Python packages and the commands, in .venv
deps: debian $(REAL_READY) ## what the real parts need: Debian packages and libvirt-python

demo: $(READY) $(if $(REAL),deps) ## the main job told and checked, on embedded parts; REAL=1 for real ones
	@$(BIN)/python -m devstack.demo $(if $(REAL),--real) $(ARGS)

test: deps ## every test but the long ones, on real parts; says what it skipped and why [JOBS=2]
	@$(PYTEST) -m "not long" $(ARGS)

test-unit: $(READY) ## the unit tests alone; needs no real parts
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test-long: deps ## every test, also those that outgrew the time budget of `make test`
	@$(PYTEST) --hypothesis-profile=new $(ARGS)

bench: deps ## messages and durable commands, and what one costs, beside the bare parts [ARGS=--quick]
	@$(BIN)/python -m tests.bench $(ARGS)

simulate: $(READY) ## SEEDS=1000 [FROM=0] [SEED=n] [MUTANT=name] [MUTANTS=all]: faults by the thousand
	@$(BIN)/python -m simulation $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(FROM),--from $(FROM)) $(if $(MUTANT),--mutant $(MUTANT)) $(if $(MUTANTS),--mutants)

scenarios: $(READY) ## every simulation/scenarios/*.scenario against its golden log [NAME=name]
	@$(BIN)/python -m simulation.play $(if $(NAME),--verbose $(NAME)) $(ARGS)

faults: deps ## COMMANDS=2000 [SEED=n]: real processes in a storm of kill -9, SIGSTOP and partitions
	@$(BIN)/python -m devstack.faults $(if $(COMMANDS),--commands $(COMMANDS)) \
		$(if $(SEED),--seed $(SEED)) $(ARGS)

lint: $(READY) ## style, types, who may import whom, generated files, machine paths
	@$(BIN)/python -m devstack.lint

format: $(READY) ## let ruff correct what it can
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

samples: $(READY) ## write etc/muster/muster.conf.sample, doc/states.md and doc/model.md again
	@$(BIN)/python -m devstack.docs

constraints: deps ## write constraints.txt again, with the newest versions that setup.cfg allows
	@devstack/constraints

clean: ## remove .venv, caches and build leftovers
	@rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

debian:
	@devstack/deps real $(PYTHON)

$(READY): setup.cfg pyproject.toml constraints.txt
	@devstack/deps venv $(PYTHON)
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the pinned Python packages into $(VENV) (about a minute)"
	@$(PIP) pip setuptools wheel
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(REAL_READY): $(READY) | debian
	@echo "building libvirt-python (about ten seconds)"
	@$(PIP) --no-build-isolation --editable '.[dev,libvirt]'
	@touch $@
