# Two commands from a fresh clone: `make sweep` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Rooms run beside each other, the longest first; tests of one room run one after the other. Each test is in one room.
ROOMS := unit stages training mpi emulated gloo communicators layer
JOBS ?= 3
named = $(foreach name,$(1),$(or $(wildcard $(name)),$(error no tests are called $(name))))
stages = $(call named,$(addprefix tests/unit/,ab analysis measure sweep tune train))
unit = $(filter-out $(stages) %/__init__.py %/__pycache__,$(call named,$(wildcard tests/unit/*)))
layer = $(call named,tests/moe tests/kernels)
training = $(call named,tests/gloo/test_train*.py tests/package)
communicators = $(call named,tests/gloo/test_communicator_*.py tests/gloo/test_moe*.py tests/gloo/test_helloworld.py)
gloo = $(filter-out $(training) $(communicators),$(call named,tests/gloo/test_*.py tests/slurm tests/gpu))
mpi = $(call named,tests/mpi)
emulated = $(call named,tests/emulated)
programs = $(wildcard tests/programs/test_*.py)
TOGETHER := --no-print-directory --jobs=$(JOBS) --keep-going --output-sync=target
CASES ?= not slow
# Not compiled: of 11000 files a fifth is ever imported, and is compiled then.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
PROGRAMS_PIP := $(VENV)-programs/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

.DELETE_ON_ERROR:
.PHONY: sweep test test-all test-pages test-programs rooms $(ROOMS:%=.%) check bench figures clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

sweep: $(VENV)/.run ## measure all-to-all on this machine and draw the curves: make sweep ARGS="quick dtype=bf16"
	$(BIN)/commbench sweep $(ARGS)

test: $(VENV)/.dev ## run the tests: make test ARGS="tests/unit -k stats"
ifdef ARGS
	$(BIN)/python -m pytest -m "$(CASES)" $(ARGS)
else
	$(MAKE) $(TOGETHER) $(ROOMS:%=.%)
endif

test-all: export CASES = slow or not slow
test-all: test ## run the tests, and more cases of some of them (longer)

test-pages: $(VENV)/.dev ## look at pages of reports in Chromium (apt install chromium): PAGES=DIR keeps pictures
	$(BIN)/python -m pytest -s tests/programs/test_pages.py

test-programs: $(VENV)-programs/.made ## run programs of others: DeepSpeed, Megatron, torchtitan, HF (long; a venv of 2 GB)
	$(VENV)-programs/bin/python -m pytest --durations=10 $(if $(ARGS),$(ARGS),$(programs))

$(ROOMS:%=.%): .%:
	$(BIN)/python -m pytest -m "$(CASES)" --durations=10 $($*)

rooms: ## list which tests are in which room
	@$(foreach room,$(ROOMS),echo "$(room): $($(room))";)

check: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## what the harness costs, and kills over gloo (minutes; prints tables)
	$(BIN)/python -m tests.bench $(ARGS)

figures: $(VENV)/.dev ## redraw every picture of README and docs from results/reference
	$(BIN)/python -m tests.bench.figures

clean: ## remove the environment and all caches; results stay
	rm -rf $(VENV) $(VENV)-programs .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

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

# An environment of its own, as what they need contradicts constraints.txt. DeepSpeed looks at torch when it is built,
# and would compile kernels.
$(VENV)-programs/.made: tests/programs/requirements.txt pyproject.toml constraints.txt
	@echo "setting up $(VENV)-programs (once; some minutes)"
	$(PYTHON) -m venv $(VENV)-programs
	$(PROGRAMS_PIP) --editable '.[dev]' $(shell grep '^torch==' constraints.txt)
	DS_BUILD_OPS=0 $(PROGRAMS_PIP) --no-build-isolation --requirement $<
	@touch $@
