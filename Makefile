# podwire. `make help` lists the targets; each sets up what it needs in .venv.
# Only paths relative to this folder are used, so it may lie anywhere.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq --no-input
PYTEST_ARGS ?=
# One more than processors: some tests wait. Whoever has nothing left to do takes over from another.
WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov=cni_plugin --cov=ipam --cov=launcher

export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help venv components check format test coverage demo bench image wheel build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(READY) ## the virtual environment with podwire in it

$(RUNS): pyproject.toml
	@PYTHON="$(PYTHON)" bash tests/support/make-venv.sh $(VENV)
	@echo "installing podwire into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e .
	@touch $@

$(READY): $(RUNS)
	@echo "installing the tools for tests and checks into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e ".[test,check]"
	@touch $@

components: ## install the real clients that tests use, where that is possible
	@bash tests/support/install-components.sh

check: $(READY) ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) components ## every test, with coverage
	$(PYTEST) --cov-report=term $(PYTEST_ARGS)

coverage: $(READY) ## the same, and the lines that no test reaches as HTML in build/coverage
	$(PYTEST) --cov-report=term-missing --cov-report=html:build/coverage $(PYTEST_ARGS)

demo: $(RUNS) ## the network of one node and of two, in namespaces of this machine
	@$(BIN)/podwire lab demo

bench: $(READY) build ## ADD, DEL and IPAM against the Go plugins, beside each other
	@bash tests/support/install-components.sh ip nsenter iptables iperf3 /usr/lib/cni/bridge
	@$(BIN)/python -m bench

image: ## a container image
	docker build -t podwire .

wheel: $(RUNS) ## a wheel in build/
	@$(PIP) wheel --no-deps --wheel-dir build .

build: $(RUNS) ## the self-contained executable, build/podwire
	@$(BIN)/python -m launcher.build

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
