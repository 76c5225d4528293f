# Two commands matter: `make demo` and `make test`. Both start from nothing and may be repeated.
#   PYTHON=python3.12 make test     another interpreter (3.11 or newer)
#   make test ARGS="-k volume -x"   arguments for pytest
#   make test WORKERS=8             processes that share the tests; 0 for one after another
PYTHON ?= python3
DEMO_VENV ?= .venv-demo
TEST_VENV ?= .venv-test
DOCS_VENV ?= .venv-docs
RELEASE_VENV ?= .venv-release
FUZZ_VENV ?= .venv-fuzz
ARGS ?=
WORKERS ?= 2

PIP_FLAGS = --disable-pip-version-check --no-compile --quiet --constraint constraints.txt
ROOMS = runtime calibration train export cli
SOURCES = $(shell find $(ROOMS) -type f -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: help demo test coverage lint format docs release locks audit fuzz clean python-ok
.DEFAULT_GOAL := help

help:
	@echo "make demo      harmonize one head seen by three simulated scanners; writes ./hz-demo"
	@echo "make test      the whole test suite"
	@echo "make coverage  the same, counting the lines that it runs; fails under the floor in pyproject.toml"
	@echo "make lint      ruff and mypy"
	@echo "make format    rewrite the code in the project's style"
	@echo "make docs      the API reference of hz_runtime, from its docstrings; writes build/api"
	@echo "make release   sdist and wheel, twice and compared; SBOMs and the bundle's ML-BOM; writes dist"
	@echo "make locks     the lock files of every extra anew; after constraints.txt has changed"
	@echo "make audit     known advisories of every locked package; one that cannot be audited fails"
	@echo "make fuzz      a coverage-guided fuzzer on the five parsers; FUZZ_RUNS and FUZZ_SECONDS bound each"
	@echo "make clean     remove what the above made, their environments too"

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/python -m hz_cli.demo --out hz-demo

test: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# A third slower than `make test`. ARGS that leave tests out leave lines out, too.
coverage:
	$(MAKE) test ARGS="--cov --cov-report=term $(ARGS)"

lint: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy

format: $(TEST_VENV)/.installed
	$(TEST_VENV)/bin/ruff check --fix .
	$(TEST_VENV)/bin/ruff format .

docs: $(DOCS_VENV)/.installed
	$(DOCS_VENV)/bin/python docs/build_api.py build/api

release: $(RELEASE_VENV)/.installed
	$(RELEASE_VENV)/bin/python release/make.py build
	$(RELEASE_VENV)/bin/python release/make.py boms
	$(RELEASE_VENV)/bin/python release/make.py check release

locks audit: $(RELEASE_VENV)/.installed
	PATH="$(CURDIR)/$(RELEASE_VENV)/bin:$$PATH" $(RELEASE_VENV)/bin/python release/make.py $@

# atheris has wheels for Linux and CPython up to 3.13.
fuzz: $(FUZZ_VENV)/.installed
	$(FUZZ_VENV)/bin/python tests/attacks/fuzz.py

# The demo runs from a real install, so it also shows that the wheel is complete: any change of a
# source or of the bundle installs again (pip keeps the dependencies).
$(DEMO_VENV)/.installed: pyproject.toml constraints.txt README.md $(SOURCES) | $(DEMO_VENV)/bin/python
	@echo "installing the lean runtime into $(DEMO_VENV)"
	$(DEMO_VENV)/bin/python -m pip install $(PIP_FLAGS) ".[cpu]"
	@touch $@

# Tests run on the sources in place.
$(TEST_VENV)/.installed: pyproject.toml constraints.txt | $(TEST_VENV)/bin/python
	@echo "installing everything the tests need into $(TEST_VENV); torch is large"
	$(TEST_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable ".[dev,train,export,evaluate,prep,dicom,cpu,openvino,sign,dask]"
	@touch $@

# So is the reference; it needs no engine, no torch.
$(DOCS_VENV)/.installed: pyproject.toml constraints.txt | $(DOCS_VENV)/bin/python
	@echo "installing what the reference is made with into $(DOCS_VENV)"
	$(DOCS_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable ".[docs]"
	@touch $@

$(RELEASE_VENV)/.installed: pyproject.toml constraints.txt | $(RELEASE_VENV)/bin/python
	@echo "installing what a release is made with into $(RELEASE_VENV)"
	$(RELEASE_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable ".[release]"
	@touch $@

$(FUZZ_VENV)/.installed: pyproject.toml constraints.txt | $(FUZZ_VENV)/bin/python
	@echo "installing the runtime and atheris into $(FUZZ_VENV)"
	$(FUZZ_VENV)/bin/python -m pip install $(PIP_FLAGS) --editable ".[dicom]" atheris==3.0.0
	@touch $@

$(DEMO_VENV)/bin/python $(TEST_VENV)/bin/python $(DOCS_VENV)/bin/python $(RELEASE_VENV)/bin/python $(FUZZ_VENV)/bin/python: | python-ok
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

python-ok:
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing, older than 3.11, or has no venv module."; \
	  echo "  Name another:  PYTHON=python3.12 make ..."; exit 1; }

clean:
	rm -rf $(DEMO_VENV) $(TEST_VENV) $(DOCS_VENV) $(RELEASE_VENV) $(FUZZ_VENV) hz-demo hz-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
