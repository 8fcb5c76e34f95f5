# Every target installs what it needs and says what it is doing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: help install demo demo-down test e2e bench lint format crds docs docs-serve images cluster-up cluster-down clean

help: ## show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP) ## make .venv with everything

$(STAMP): pyproject.toml
	@echo "== installing into $(VENV) (torch is large: 2 to 5 minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Quire needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet -e '.[operator,engine,dev,docs]'
	@touch $@

demo: ## bring a cluster up, serve a small model on it and chat with it
	@$(PYTHON) -m e2e.demo

demo-down: ## take down what `make demo` brought up
	@$(PYTHON) -m e2e.cluster down

test: install ## the fast suite: engine, operator (against a real API server), charts
	@echo "== tests"
	@$(BIN)/python -m pytest tests $(PYTEST_ARGS)

e2e: install ## the cluster suite: a real node, or the one KUBECONFIG names
	@echo "== cluster tests"
	@$(BIN)/python -m pytest e2e $(PYTEST_ARGS)

bench: install ## the engine on this machine's cores, beside its rivals: BENCH_ARGS="--vllm PATH/vllm"
	@$(BIN)/python -m benchmarks.cpu --short $(BENCH_ARGS)

lint: install ## ruff, mypy, layers, generated files, chart
	@echo "== ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== mypy" && $(BIN)/mypy engine/quire_engine operator/quire_operator e2e benchmarks
	@echo "== layers" && $(BIN)/lint-imports
	@echo "== generated files" && $(MAKE) --no-print-directory crds && git diff --exit-code --stat -- crds charts manifests docs \
	  || { echo "generated files are not up to date: run make crds and commit"; exit 1; }
	@echo "== chart" && helm=$$($(BIN)/python -m e2e.cluster build helm) && $$helm/helm lint --strict charts/quire-operator

format: install ## let ruff rewrite the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

crds: install ## write what is generated: the CRD, tables of fields, flags and engines, dashboards and alerts
	@$(BIN)/python -m quire_operator.cli crd --write .
	@for script in docs/write_*.py; do $(BIN)/python $$script; done

docs: install ## the documentation site, checked, into build/site
	@$(MKDOCS) build --quiet && echo "build/site/index.html"

docs-serve: install ## show the site at http://127.0.0.1:8001 while you write
	@$(MKDOCS) serve --dev-addr 127.0.0.1:8001

images: ## build the engine's and the operator's image (buildah or docker)
	@$(PYTHON) -m e2e.cluster images all

cluster-up: ## bring up one real Kubernetes node on this machine
	@$(PYTHON) -m e2e.cluster up

cluster-down: demo-down ## take the node down

clean: ## remove the virtual environment and caches of this checkout
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
