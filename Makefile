# Everything runs in a virtual environment of its own; nothing need be installed but Python 3.11, g++ and make.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3.11

.PHONY: demo test lint types bench benchmarks wheel matrix clean

demo: $(VENV)/installed
	$(BIN)/taylorseer-fx demo

test: $(VENV)/installed
	$(BIN)/pytest -n auto --dist worksteal -p no:benchmark

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

bench: $(VENV)/peers
	$(BIN)/taylorseer-fx bench

benchmarks: $(VENV)/installed
	$(BIN)/pytest benchmarks --benchmark-only

wheel: $(VENV)/installed
	rm -rf build dist
	$(BIN)/python -m build --wheel

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/peers: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	touch $@

# Every torch that pyproject.toml allows, each in an environment of its own: all tests but those of Inductor and of wide tables.
MATRIX := 2.11.0 2.12.1 2.13.0
FAST   := -m 'not inductor' --ignore tests/models --ignore tests/pipelines --ignore tests/composition --ignore tests/harness

matrix: $(MATRIX:%=$(VENV)-torch-%/installed)
	for torch in $(MATRIX); do $(VENV)-torch-$$torch/bin/pytest -n auto --dist worksteal -p no:benchmark -q $(FAST) || exit 1; done

$(VENV)-torch-%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	sed '/^triton==/d; s/^torch==.*/torch==$*/' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/pip install --quiet --constraint $(@D)/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-torch-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
