# Every target sets up what it needs in $(VENV), once per change of pyproject.toml. Needs Python 3.11+ and make only;
# uses uv when there is one.

VENV ?= .venv
PY := $(VENV)/bin/python
CSV ?=
MINUTES ?= 5
ARGS ?=
export VIRTUAL_ENV :=

# The first interpreter that is new enough; `make test PYTHON=python3.13` picks another.
PYTHON ?= $(shell for python in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

UV := $(shell command -v uv)
ifdef UV
NEW_VENV = uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
INSTALL = uv pip install --quiet --python $(PY)
else
# pip knows dependency groups since 25.1
NEW_VENV = "$(PYTHON)" -m venv $(VENV) && $(PY) -m pip install --quiet --upgrade 'pip>=25.1'
INSTALL = $(PY) -m pip install --quiet
endif

# Whatever scripts/services has up is known to what follows on the line.
WITH_SERVERS = eval "$$($(PY) scripts/services env)";

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test coverage check format docs pages bench faults model pythons version clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

# On servers it needs their clients as well.
demo: $(VENV)/$(if $(DATABASE_URL)$(BROKER_URL),.dev,.demo) ## an order application that loses nothing although its worker is killed (CSV=path: your orders)
	$(PY) -m examples.shop $(if $(CSV),"$(CSV)",)

test: $(VENV)/.dev ## all tests; those that need servers after `scripts/services up` (ARGS: for pytest)
	$(WITH_SERVERS) $(PY) -m pytest -n logical $(ARGS)

coverage: $(VENV)/.dev ## the same tests with branch coverage
	$(WITH_SERVERS) $(PY) -m pytest --cov $(ARGS)

check: $(VENV)/.dev ## ruff, mypy, pyright and the layers
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(PY) -m mypy
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev ## let ruff format and mend what it can
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

docs: $(VENV)/.dev ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

pages: $(VENV)/.dev ## paste into docs/reference/cli.md what the commands there print now
	$(PY) -m tests.docs.cli_page

bench: $(VENV)/.dev ## measure, print a table and write JSON (ARGS: for the benchmarks)
	$(WITH_SERVERS) $(PY) -m benchmarks $(ARGS)

faults: $(VENV)/.dev ## kill, stop, cut and restart for MINUTES, then check that no promise was broken (ARGS: which combinations)
	$(PY) -m tests.faults --minutes $(MINUTES) $(ARGS)

pythons: ## the unit tests under every supported Python; with servers and SQLAlchemy 2.0 the database tests, too
	eval "$$(scripts/services env)"; scripts/pythons $(ARGS)

version: | $(PY)
	@$(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])'

model: ## search the models of the relay with spin (ARGS=--deep: further, ARGS="--show MISTAKE")
	scripts/model $(ARGS)


clean: ## remove what the targets above made
	rm -rf $(VENV) .venvs build dist site .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(PY):
	@test -n "$(PYTHON)" || { echo 'No Python 3.11 or newer found. Name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	$(NEW_VENV)

$(VENV)/.demo: pyproject.toml | $(PY)
	$(INSTALL) -e '.[cli]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(PY)
	$(INSTALL) -e '.[all]' --group dev
	@touch $(VENV)/.demo $@
