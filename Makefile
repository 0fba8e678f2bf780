# Two commands from a fresh machine (Python 3.10+ and a C++ compiler): `make demo`, `make test`.
# Each sets up everything that it needs in $(VENV). To use an environment of your own, with your own
# torch: make VENV=$$VIRTUAL_ENV demo

PYTHON ?= python3
VENV ?= .venv
# The version that CI pins. Any torch >= 2.10, CPU or CUDA build, will do.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.rdkernels-installed
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp')

.PHONY: demo test test-all lint format bench clean

demo: $(INSTALLED)  ## the shipped demo model answers held-out problems
	$(BIN)/rdkernels demo

test: $(INSTALLED) lint  ## lint, and all tests but those marked slow
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(INSTALLED) lint  ## the slow ones too: sanitizer builds, wheels, all mutants
	$(BIN)/python -m pytest -q

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' | \
	    grep -v _build/ | xargs $(BIN)/clang-format --dry-run --Werror

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' | \
	    grep -v _build/ | xargs $(BIN)/clang-format -i

# The build uses the torch of the environment (no build isolation), so torch comes first.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --no-build-isolation --editable ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info rdkernels/_C*.so
