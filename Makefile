# Two commands from a fresh clone: `make sweep` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two rooms at a time, in this order. Tests of one room never run beside each other: in the first are all that no other
# room names, whose ranks would share links and cores; ranks of the last two only compute, and time nothing.
ROOMS := .with-ranks .without-ranks .training .communicators
WITHOUT_RANKS := tests/unit tests/kernels tests/moe
COMMUNICATORS := $(wildcard tests/gloo/test_communicator_*.py tests/gloo/test_moe*.py) tests/gloo/test_helloworld.py
TRAINING := $(wildcard tests/gloo/test_train*.py) tests/package
CASES ?= not slow
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DELETE_ON_ERROR:
.PHONY: sweep test test-all $(ROOMS) check bench clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

sweep: $(VENV)/.run ## measure all-to-all on this machine and draw the curves: make sweep ARGS="quick dtype=bf16"
	$(BIN)/commbench sweep $(ARGS)

test: $(VENV)/.dev ## run the tests: make test ARGS="tests/unit -k stats"
ifdef ARGS
	$(BIN)/python -m pytest -m "$(CASES)" $(ARGS)
else
	$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(ROOMS)
endif

test-all: export CASES = slow or not slow
test-all: test ## run the tests, and more cases of some of them (longer)

.with-ranks:
	$(BIN)/python -m pytest -m "$(CASES)" $(patsubst %,--ignore=%,$(WITHOUT_RANKS) $(COMMUNICATORS) $(TRAINING)) tests

.without-ranks:
	$(BIN)/python -m pytest -m "$(CASES)" $(WITHOUT_RANKS)

.communicators:
	$(BIN)/python -m pytest -m "$(CASES)" $(COMMUNICATORS)

.training:
	$(BIN)/python -m pytest -m "$(CASES)" $(TRAINING)

check: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## what the harness costs, and kills over gloo (minutes; prints tables)
	$(BIN)/python -m tests.bench $(ARGS)

clean: ## remove the environment and all caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "setting up $(VENV) (once; a minute or two)"
	$(PIP) --editable '.[mpi]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.run
	@echo "adding what tests need to $(VENV)"
	$(PIP) --editable '.[dev]'
	@touch $@
