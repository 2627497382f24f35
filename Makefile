# Each target sets up what it needs. The set-up is one virtual environment, pinned by $(CONSTRAINTS).

CONSTRAINTS := constraints/py311-airflow-3.3.2.txt
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP_INSTALL := $(PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)
# Written last: a set-up that was interrupted has no stamp and is done again.
STAMP := $(VENV)/.complete
PYTEST_ARGS ?=
CHAOS_ARGS ?=
# The benchmarks need other providers to compare with; these have no place in the environment that we develop in.
BENCH_CONSTRAINTS := constraints/bench.txt
BENCH_VENV := .venv-bench
BENCH_PYTHON := $(BENCH_VENV)/bin/python
BENCH_STAMP := $(BENCH_VENV)/.complete
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench docs lint format airflow build clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 16

demo: $(STAMP)  ## make a 3D model in a real Airflow, against an emulated service
	@$(PYTHON) -m tools.demo

test: $(STAMP)  ## run the tests; PYTEST_ARGS="-k name" passes on to pytest
	@$(PYTHON) -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

chaos: $(STAMP)  ## let processes of a real Airflow die; CHAOS_ARGS="--list" passes on
	@$(PYTHON) -m tests.chaos $(CHAOS_ARGS)

bench: $(BENCH_STAMP)  ## measure us beside other providers; BENCH_ARGS="triggers --quick" passes on
	@$(BENCH_PYTHON) -m benchmarks $(BENCH_ARGS)

docs: $(STAMP)  ## build the documentation site into docs/_build/html; a warning is an error
	@$(PYTHON) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(STAMP)  ## check style and types
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format: $(STAMP)  ## format the code and repair what can be repaired
	@$(PYTHON) -m ruff check --fix-only .
	@$(PYTHON) -m ruff format .

airflow: $(STAMP)  ## run Airflow with the examples and the emulator until Ctrl-C
	@$(PYTHON) -m tools.run_airflow

build: $(STAMP)  ## build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(PYTHON) -m build --no-isolation --outdir dist .

clean:  ## remove everything that the targets made
	rm -rf $(VENV) $(BENCH_VENV) bench.json .airflow .demo dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python=$$(for name in python3.11 python3; do \
	    if command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then echo $$name; break; fi; done); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed: neither python3.11 nor python3 is one." >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$($$python --version): takes about two minutes, once."; \
	rm -f $(STAMP) && $$python -m venv $(VENV)
	@$(PIP_INSTALL) pip hatchling
	@$(PIP_INSTALL) --no-build-isolation --group dev --editable '.[emulator,images]'
	@touch $(STAMP)

$(BENCH_STAMP): $(STAMP) $(BENCH_CONSTRAINTS)
	@echo "Setting up $(BENCH_VENV): takes about a minute, once."; rm -f $(BENCH_STAMP) && $(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) pip hatchling
	@$(BENCH_PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) \
	    --constraint $(BENCH_CONSTRAINTS) --no-build-isolation --group bench --editable .
	@touch $(BENCH_STAMP)
