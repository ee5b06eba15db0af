# Everything runs in a virtual environment of its own; nothing need be installed but Python 3.11, g++ and make.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3.11

.PHONY: demo test lint types bench benchmarks wheel clean

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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
