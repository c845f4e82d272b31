# make demo: the whole road on made-up data, on a CPU.   make test: the test suite.
# PIP_ARGS is passed to pip, for example an extra index with CPU builds of torch.

PYTHON ?= python3
VENV := .venv
PIP_ARGS ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	scripts/run_pipeline.sh configs/demo

test: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	python -m pytest

lint: $(VENV)/.installed-test
	ruff check --fix .
	ruff format .

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version: a range would let pip take a build for another platform
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[test]'
	touch $@
