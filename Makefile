# Everything runs in a virtual environment of its own; nothing need be installed but Python 3.11, g++ and make.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3.11

.PHONY: help demo test lint types docs bench benchmarks wheel matrix clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## generate digits three ways, measure, draw a picture
	$(BIN)/taylorseer-fx demo

test: $(VENV)/installed  ## run the test suite
	$(BIN)/pytest -n auto --dist worksteal -p no:benchmark

lint: $(VENV)/installed  ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed  ## check types
	$(BIN)/mypy

docs: $(VENV)/docs  ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs docs/_build/html

bench: $(VENV)/peers  ## compare with other methods, 18 minutes on two cores
	$(BIN)/taylorseer-fx bench

benchmarks: $(VENV)/installed  ## measure the parts
	$(BIN)/pytest benchmarks --benchmark-only

wheel: $(VENV)/installed  ## build wheel and source archive into dist/
	rm -rf build dist
	$(BIN)/python -m build

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/peers: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

# Every torch that pyproject.toml allows, each in an environment of its own: all tests but those of Inductor and of wide tables.
MATRIX := 2.11.0 2.12.1 2.13.0
FAST   := -m 'not inductor' --ignore tests/models --ignore tests/pipelines --ignore tests/composition --ignore tests/harness

matrix: $(MATRIX:%=$(VENV)-torch-%/installed)  ## run the fast tests on each supported torch
	for torch in $(MATRIX); do $(VENV)-torch-$$torch/bin/pytest -n auto --dist worksteal -p no:benchmark -q $(FAST) || exit 1; done

$(VENV)-torch-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	sed '/^triton==/d; s/^torch==.*/torch==$*/' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/pip install --quiet --constraint $(@D)/constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove environments, builds and caches
	rm -rf $(VENV) $(VENV)-torch-* build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache
