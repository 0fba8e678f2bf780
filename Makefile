# Two commands from a fresh machine (Python 3.10+ and a C++ compiler): `make demo`, `make test`.
# Each sets up everything that it needs in $(VENV). To use an environment of your own, with your own
# torch: make VENV=$$VIRTUAL_ENV demo

PYTHON ?= python3
VENV ?= .venv
# The version that CI pins. Any torch >= 2.10, CPU or CUDA build, will do.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.rdkernels-installed
CXX_FILES = $(shell find csrc tests -name _build -prune -o \
    \( -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' \) -print)
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp')
# mkdocs and import-linter need Python 3.11.
NEW_PYTHON := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test test-all lint docs format clean

demo: $(INSTALLED)  ## the shipped demo model answers held-out problems
	$(BIN)/rdkernels demo

test: $(INSTALLED) lint  ## lint, and all tests but those marked slow
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(INSTALLED) lint  ## the slow ones too: sanitizer builds, wheels, all mutants, repetitions
	$(BIN)/python -m pytest -q
	$(BIN)/python -m tests.repeat

lint: $(INSTALLED)  ## style, types, the floors that imports may cross, and the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy rdkernels
	@if $(BIN)/python -c "$(NEW_PYTHON)"; then set -ex; \
	    $(BIN)/lint-imports; NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet; \
	else echo "left out before Python 3.11: lint-imports, mkdocs"; fi

docs: $(INSTALLED)  ## the site, in build/site; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The build uses the torch of the environment (no build isolation), so torch comes first.
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --no-build-isolation --editable ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info rdkernels/_C*.so
