# Every habit is a command. Each makes its own virtual environment first.

PYTHON ?= python3
JOBS ?= 2
MINUTES ?= 5
SCALE ?= 10
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALLED := $(VENV)/.installed
LOWEST_VENV := .venv-lowest
LOWEST_INSTALLED := $(LOWEST_VENV)/.installed
LOWEST_WEB_VENV := .venv-lowest-web
LOWEST_WEB_INSTALLED := $(LOWEST_WEB_VENV)/.installed
# The extra mcp needs a newer pydantic than the package. It brings httpx2.
NEED_MCP := $(shell grep -rlE '^ *(from|import) (mcp|httpx2|tests.support.mcp|tests.support.served)\b' tests)
NEIGHBOURS_VENV := .venv-neighbours
NEIGHBOURS_INSTALLED := $(NEIGHBOURS_VENV)/.installed
DIST_VENV := .venv-dist
DIST_INSTALLED := $(DIST_VENV)/.installed
FRAMEWORKS_VENV := .venv-frameworks
FRAMEWORKS_INSTALLED := $(FRAMEWORKS_VENV)/.installed
FRAMEWORKS := chat,anthropic,openai-agents,pydantic-ai,langgraph,google-adk,claude-agent,agent-framework
BROWSER_VENV := .venv-browser
BROWSER_INSTALLED := $(BROWSER_VENV)/.installed
AXE_VERSION := 4.14.1
AXE := $(abspath $(BROWSER_VENV))/node_modules/axe-core/axe.min.js
BROWSER ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
OPENAPI_VENV := .venv-openapi
OPENAPI_INSTALLED := $(OPENAPI_VENV)/.installed
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-web test test-lowest test-lowest-web test-pythons test-neighbours test-frameworks test-browser test-openapi check soak format docs bench bench-quick bench-page dist clean

help:  ## List the commands.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' \
		| while IFS="$$(printf '\t')" read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --constraint constraints.txt --editable . --group test --group check
	@touch $@

demo: $(INSTALLED)  ## Show what the package is for, on a fresh SQLite file.
	@$(BIN)/sessionsdb demo

demo-web: $(INSTALLED)  ## Let scripted agents work, and open the web page over them.
	@$(BIN)/python -m devtools.demo_web

test: $(INSTALLED)  ## Run every test, on SQLite and PostgreSQL, in JOBS (2) processes side by side.
	$(BIN)/python -m devtools.run_tests --jobs $(JOBS)

$(LOWEST_INSTALLED): pyproject.toml constraints-lowest.txt
	@test -x $(LOWEST_VENV)/bin/python || $(PYTHON) -m venv $(LOWEST_VENV)
	@$(LOWEST_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(LOWEST_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints-lowest.txt --editable . --group test-lowest
	@touch $@

test-lowest: $(LOWEST_INSTALLED)  ## Run the tests on the lowest versions that pyproject.toml allows: TESTS="FILE …" for some.
	$(LOWEST_VENV)/bin/python -m pytest $(or $(TESTS),tests) \
		$(foreach file,$(NEED_MCP),--ignore $(file))

$(LOWEST_WEB_INSTALLED): pyproject.toml constraints-lowest.txt constraints-lowest-web.txt
	@test -x $(LOWEST_WEB_VENV)/bin/python || $(PYTHON) -m venv $(LOWEST_WEB_VENV)
	@$(LOWEST_WEB_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@grep -v '^pydantic==' constraints-lowest.txt > $(LOWEST_WEB_VENV)/constraints.txt
	$(LOWEST_WEB_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint $(LOWEST_WEB_VENV)/constraints.txt --constraint constraints-lowest-web.txt \
		--editable '.[web,mcp]' --group test-lowest
	@touch $@

test-lowest-web: $(LOWEST_WEB_INSTALLED)  ## Run the tests of the extras web and mcp on their lowest versions: TESTS="FILE …" for some.
	$(LOWEST_WEB_VENV)/bin/python -m pytest $(or $(TESTS),$(NEED_MCP) $(wildcard tests/test_web*.py))

test-pythons:  ## Run the tests on each Python from 3.11 to 3.14 that is here: TESTS="FILE …" for some.
	@$(PYTHON) -m devtools.run_on_pythons --jobs $(JOBS) $(TESTS)

$(NEIGHBOURS_INSTALLED): pyproject.toml
	@test -x $(NEIGHBOURS_VENV)/bin/python || $(PYTHON) -m venv $(NEIGHBOURS_VENV)
	@$(NEIGHBOURS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(NEIGHBOURS_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --group neighbours
	@touch $@

test-neighbours: $(NEIGHBOURS_INSTALLED)  ## Find versions for us beside large applications of today. Needs the network.
	$(NEIGHBOURS_VENV)/bin/python -m devtools.check_neighbours

$(FRAMEWORKS_INSTALLED): pyproject.toml constraints-frameworks.txt
	@test -x $(FRAMEWORKS_VENV)/bin/python || $(PYTHON) -m venv $(FRAMEWORKS_VENV)
	@$(FRAMEWORKS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(FRAMEWORKS_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints-frameworks.txt --editable '.[$(FRAMEWORKS)]' --group test-frameworks
	@touch $@

test-frameworks: $(FRAMEWORKS_INSTALLED)  ## Run the tests of the adapters, with all frameworks installed: TESTS="FILE …" for some.
	SESSIONSDB_TEST_FRAMEWORKS=1 $(FRAMEWORKS_VENV)/bin/python -m devtools.run_tests \
		--jobs $(JOBS) $(or $(TESTS),tests/frameworks)

$(BROWSER_INSTALLED): pyproject.toml
	@test -x $(BROWSER_VENV)/bin/python || $(PYTHON) -m venv $(BROWSER_VENV)
	@$(BROWSER_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BROWSER_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints.txt --editable '.[web]' --group test-browser
	@touch $@

# Without npm, or without its registry, the file is not made, and the tests of axe are left out.
$(AXE): | $(BROWSER_INSTALLED)
	@npm install --prefix $(BROWSER_VENV) --no-save --no-package-lock --no-audit --no-fund --silent \
		axe-core@$(AXE_VERSION) || echo "npm can't install axe-core here"

test-browser: $(BROWSER_INSTALLED) $(AXE)  ## Use the web pages in a real browser: BROWSER=PATH of a Chromium. npm brings axe.
	SESSIONSDB_TEST_BROWSER=$(BROWSER) SESSIONSDB_TEST_AXE=$(AXE) $(BROWSER_VENV)/bin/python -m pytest tests/browser

$(OPENAPI_INSTALLED): pyproject.toml constraints-openapi.txt
	@test -x $(OPENAPI_VENV)/bin/python || $(PYTHON) -m venv $(OPENAPI_VENV)
	@$(OPENAPI_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(OPENAPI_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints-openapi.txt --editable '.[web]' --group test-openapi
	@touch $@

test-openapi: $(OPENAPI_INSTALLED)  ## Call the HTTP API with what its OpenAPI document allows and forbids: SEED=NUMBER for other values.
	SESSIONSDB_TEST_OPENAPI=1 $(if $(SEED),SESSIONSDB_TEST_SEED=$(SEED) SESSIONSDB_TEST_SCALE=$(SCALE)) $(OPENAPI_VENV)/bin/python -m pytest tests/openapi

check: $(INSTALLED)  ## Check format, lint, types, layers and that schema and migrations agree.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest tests/test_migrations.py -k drift

soak: $(INSTALLED)  ## Work under faults for MINUTES (5) and check all promises; then the long forms of those tests.
	$(BIN)/python -m soak --minutes $(MINUTES) --json soak-figures.json --markdown soak-figures.md
	SESSIONSDB_TEST_SCALE=$(SCALE) $(BIN)/pytest tests/reliability --timeout 3600 \
		--ignore tests/reliability/test_soak.py --ignore tests/reliability/test_soak_checker.py

format: $(INSTALLED)  ## Format the code and mend what the linter can mend.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)  ## Write docs/cli.md from the commands' own help.
	$(BIN)/python -m sessionsdb.cli.reference > docs/cli.md

$(BENCH_INSTALLED): pyproject.toml constraints-bench.txt
	@test -x $(BENCH_VENV)/bin/python || $(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BENCH_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--constraint constraints-bench.txt --editable . --group bench
	@touch $@

bench: $(BENCH_INSTALLED)  ## Measure against peers and the bare drivers.
	$(BENCH_VENV)/bin/python -m benchmarks --json benchmarks/results.json

bench-quick: $(BENCH_INSTALLED)  ## The same in two minutes, with rougher figures.
	$(BENCH_VENV)/bin/python -m benchmarks --quick --json benchmarks/results-quick.json

bench-page: $(BENCH_INSTALLED)  ## Put the results of bench into benchmarks/RESULTS.md.
	$(BENCH_VENV)/bin/python -m benchmarks.page benchmarks/results.json

$(DIST_INSTALLED): pyproject.toml
	@test -x $(DIST_VENV)/bin/python || $(PYTHON) -m venv $(DIST_VENV)
	@$(DIST_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(DIST_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --group dist
	@touch $@

dist: $(DIST_INSTALLED)  ## Build the distributions, and try the wheel in an empty environment.
	$(DIST_VENV)/bin/python -m devtools.check_distribution

clean:  ## Remove the virtual environment and the caches.
	rm -rf $(VENV) $(LOWEST_VENV) $(FRAMEWORKS_VENV) $(BENCH_VENV) $(DIST_VENV) $(BROWSER_VENV) $(OPENAPI_VENV) dist
	rm -rf .venv-python-3.* $(NEIGHBOURS_VENV)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
