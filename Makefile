# Two commands from a fresh clone: `make sweep` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that start ranks never run beside each other: they would share cores and links.
WITHOUT_RANKS := unit or kernels or moe
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DELETE_ON_ERROR:
.PHONY: sweep test .with-ranks .without-ranks check bench clean help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

sweep: $(VENV)/.run ## measure all-to-all on this machine and draw the curves: make sweep ARGS="quick dtype=bf16"
	$(BIN)/commbench sweep $(ARGS)

test: $(VENV)/.dev ## run the tests: make test ARGS="tests/unit -k stats"
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target .with-ranks .without-ranks
endif

.with-ranks:
	$(BIN)/python -m pytest -m "not ($(WITHOUT_RANKS))"

.without-ranks:
	$(BIN)/python -m pytest -m "$(WITHOUT_RANKS)"

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
