# Each target sets up its requirements: one virtual environment, pinned by $(CONSTRAINTS). The benchmarks and the tests on an older
# Airflow use separate environments.

CONSTRAINTS := constraints/py311-airflow-3.3.2.txt
VENV := .venv
PYTHON := $(VENV)/bin/python
# The build hook downloads it (hatch_build.py). pip hides the warning of the hook.
VIEWER := airflow_provider_flows/plugin/viewer/model-viewer.js
# Written last: an interrupted set-up has no stamp and is repeated.
STAMP := $(VENV)/.complete
PYTEST_ARGS ?=
# Six processes for two processors, because tests wait for clocks. tests/conftest.py sets the order of the files.
SIDE_BY_SIDE := --numprocesses 6 --dist loadfile --no-loadscope-reorder
CHAOS_ARGS ?=
FUZZ_ARGS ?=
# The benchmarks compare with other providers, which do not belong into the development environment.
BENCH_CONSTRAINTS := constraints/bench.txt
BENCH_VENV := .venv-bench
BENCH_PYTHON := $(BENCH_VENV)/bin/python
BENCH_STAMP := $(BENCH_VENV)/.complete
BENCH_ARGS ?=
# `make test` needs no browser.
BROWSER_STAMP := $(VENV)/.browser
# The oldest and the newest supported minor version of Airflow, which `make test-versions` tests by default. Any version with
# constraints can be named: also those between them, and the next one, as a pre-release. Each has an environment; that of the
# newest one is the development environment.
VERSIONS ?= 3.1 3.3
version_constraints = $(or $(wildcard constraints/py311-airflow-$(1).*.txt),$(error there are no constraints for Airflow $(1)))
version_venv = $(if $(filter $(CONSTRAINTS),$(version_constraints)),$(VENV),.venv-airflow-$(1))
# The minor version of Airflow for `make chaos`.
CHAOS_VERSION ?= 3.3
# The minor versions of Python on which these run. Except for 3.11, each has its own environments, with the same constraints.
PYTHONS ?= 3.11
python_venv = $(if $(filter 3.11,$(2)),$(version_venv),.venv-airflow-$(1)-python-$(2))
VERSION_VENVS = $(foreach python,$(PYTHONS),$(foreach version,$(VERSIONS),$(call python_venv,$(version),$(python))))

.DEFAULT_GOAL := help
.SECONDEXPANSION:
.PHONY: help demo test test-versions test-browser chaos fuzz bench docs lint format airflow build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

demo: $(STAMP)  ## generate a 3D model in a real Airflow, with the emulator as the service
	@$(PYTHON) -m tools.demo

test: $(STAMP)  ## run the tests; PYTEST_ARGS="-k name" adds arguments for pytest
	@$(PYTHON) -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-versions: $$(addsuffix /.complete,$$(VERSION_VENVS))  ## run the tests on the oldest and the newest Airflow; VERSIONS=3.3 and PYTHONS=3.12 select others
	@$(firstword $(VERSION_VENVS))/bin/python -m tools.test_versions $(addsuffix /bin/python,$(VERSION_VENVS)) -- \
	    $(SIDE_BY_SIDE) $(PYTEST_ARGS)

test-browser: $(BROWSER_STAMP)  ## test the pages of flow runs in a browser, and create the pictures in docs/images
	@$(PYTHON) -m pytest tests/system/browser/walk.py $(PYTEST_ARGS)

chaos: $$(call version_venv,$$(CHAOS_VERSION))/.complete  ## kill processes of a real Airflow; CHAOS_ARGS="--list" adds arguments
	@$(call version_venv,$(CHAOS_VERSION))/bin/python -m tests.system.chaos $(CHAOS_ARGS)

fuzz: $(STAMP)  ## give every reader 100,000 odd values in all; FUZZ_ARGS="--examples 5000" adds arguments
	@$(PYTHON) -m tests.system.fuzz $(FUZZ_ARGS)

bench: $(BENCH_STAMP)  ## compare with other providers; BENCH_ARGS="triggers --quick" adds arguments
	@$(BENCH_PYTHON) -m benchmarks $(BENCH_ARGS)

docs: $(STAMP)  ## build the documentation site into docs/_build/html; a warning is an error
	@$(PYTHON) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lint: $(STAMP)  ## check style, types and what bandit knows of insecure code
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTHON) -m bandit --quiet --configfile pyproject.toml --recursive airflow_provider_flows example_dags tools

format: $(STAMP)  ## format the code and apply automatic fixes
	@$(PYTHON) -m ruff check --fix-only .
	@$(PYTHON) -m ruff format .

airflow: $(STAMP)  ## run Airflow with the examples and the emulator until Ctrl-C
	@$(PYTHON) -m tools.run_airflow

build: $(STAMP)  ## build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(PYTHON) -m build --no-isolation --outdir dist .

clean:  ## remove everything that the targets created
	rm -rf $(VENV) $(BENCH_VENV) .venv-airflow-* bench.json .airflow .demo .fuzz dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): the environment; $(2): its constraints; $(3): the only minor version of Python that may be used, or empty.
define set_up
@python=$$(for name in $(if $(3),python$(3),python3.11 python3); do \
    if command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
    then echo $$name; break; fi; done); \
if [ -z "$$python" ]; then echo "Python $(or $(3),3.11 or newer) is needed:" \
    "$(if $(3),there is no python$(3) in PATH,neither python3.11 nor python3 is one)." >&2; exit 1; fi; \
echo "Setting up $(1) with $$($$python --version): takes about two minutes, once."; \
rm -f $(1)/.complete && $$python -m venv $(1)
@$(1)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(2) pip hatchling \
    hatch-fancy-pypi-readme
@$(1)/bin/python -m pip --disable-pip-version-check install --quiet --constraint $(2) \
    --no-build-isolation --group dev --editable '.[emulator,images,parquet]'
@test -f $(VIEWER) || echo "$(VIEWER) could not be downloaded: the pages will offer 3D models for download only." >&2
@touch $(1)/.complete
endef

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(call set_up,$(VENV),$(CONSTRAINTS))

# The stem is a version of Airflow (3.1), or one of Airflow and one of Python (3.3-python-3.12).
.venv-airflow-%/.complete: pyproject.toml $$(call version_constraints,$$(firstword $$(subst -python-, ,$$*)))
	$(call set_up,$(@D),$(call version_constraints,$(firstword $(subst -python-, ,$*))),$(word 2,$(subst -python-, ,$*)))

$(BROWSER_STAMP): $(STAMP)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	    { echo "Installing chromium with apt-get."; apt-get update -qq && apt-get install --yes -qq chromium; }
	@$(PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) --group browser
	@touch $(BROWSER_STAMP)

$(BENCH_STAMP): $(STAMP) $(BENCH_CONSTRAINTS)
	@echo "Setting up $(BENCH_VENV): takes about a minute, once."; rm -f $(BENCH_STAMP) && $(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) pip hatchling \
    hatch-fancy-pypi-readme
	@$(BENCH_PYTHON) -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) \
	    --constraint $(BENCH_CONSTRAINTS) --no-build-isolation --group bench --editable .
	@touch $(BENCH_STAMP)
