# podwire. `make help` lists the targets; each sets up what it needs in .venv.
# Only paths relative to this folder are used, so it may lie anywhere.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq --no-input
PYTEST_ARGS ?=
# One more than processors: some tests wait. How they share the tests: tests/support/distribution.py.
WORKERS ?= $(shell expr $$(nproc) + 1)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope
# Every process that a test starts is measured too, which makes a call three times as slow.
COVERAGE := --cov=cni_plugin --cov=ipam --cov=launcher

# For image, kind and minikube.
VERSION := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' cni_plugin/version.py)
IMAGE := podwire:$(VERSION)
IMAGE_ARGS ?=
CLUSTER ?= podwire
DOCKER ?= docker
KIND ?= kind
MINIKUBE ?= minikube
KUBECTL ?= kubectl
# $(call need,PROGRAM,where it is had from): ends the target when the program is missing
need = @command -v $(1) >/dev/null || { echo "make $@: $(1) is missing: $(2)" >&2; exit 1; }
need_docker = $(call need,$(DOCKER),https://docs.docker.com/engine/install)
need_kubectl = $(call need,$(KUBECTL),https://kubernetes.io/docs/tasks/tools)
kubectl = $(KUBECTL) --context $(1)
# $(call deploy,CONTEXT): apply the manifest. Agents that are there start again: a new image has kept
# the name of the old one.
define deploy
	found=$$($(kubectl) get namespace podwire --ignore-not-found --output name) && \
		$(kubectl) apply -f conf/podwire.yaml && if [ -n "$$found" ]; then \
		$(kubectl) --namespace podwire rollout restart daemonset/podwire; fi
	$(kubectl) --namespace podwire rollout status daemonset/podwire --timeout 300s
	$(kubectl) wait --for condition=Ready nodes --all --timeout 300s
endef

export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help venv components check format test coverage demo bench image supplies kind minikube wheel \
	build clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(READY) ## the virtual environment with podwire in it

$(RUNS): pyproject.toml
	@PYTHON="$(PYTHON)" bash tests/support/make-venv.sh $(VENV)
	@echo "installing podwire into $(VENV)"
	@$(PIP) install --config-settings editable_mode=compat -e ".[kubernetes]"
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

test: $(READY) components ## every test
	$(PYTEST) $(PYTEST_ARGS)

coverage: $(READY) components ## the same, and the lines that no test reaches, also in build/coverage
	$(PYTEST) $(COVERAGE) --cov-report=term-missing --cov-report=html:build/coverage $(PYTEST_ARGS)

demo: $(RUNS) ## the network of one node and of two, in namespaces of this machine
	@$(BIN)/podwire lab demo

bench: $(READY) build ## ADD, DEL and IPAM against the Go plugins, beside each other
	@bash tests/support/install-components.sh ip nsenter iptables iperf3 /usr/lib/cni/bridge \
		containerd runc busybox
	@$(BIN)/python -m bench

image: ## the container image podwire:VERSION
	$(need_docker)
	$(DOCKER) build --tag $(IMAGE) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) $(IMAGE_ARGS) .

supplies: $(RUNS) ## what the image's build would download, in build/supplies
	@$(BIN)/python -m launcher.supplies

kind: ## a cluster with kind, podwire as its network
	$(need_docker)
	$(call need,$(KIND),https://kind.sigs.k8s.io/docs/user/quick-start)
	$(need_kubectl)
	@$(MAKE) --no-print-directory image
	$(KIND) get clusters | grep -qx $(CLUSTER) || \
		$(KIND) create cluster --name $(CLUSTER) --config conf/kind.yaml
	$(KIND) load docker-image $(IMAGE) --name $(CLUSTER)
	$(KIND) export kubeconfig --name $(CLUSTER)
	$(call deploy,kind-$(CLUSTER))

# minikube refuses `--cni false` with containerd, and applies a manifest that it is given. It reads that
# one again whenever it starts. Agents wait for the image, which can be loaded only then.
minikube: ## a cluster with minikube, podwire as its network
	$(need_docker)
	$(call need,$(MINIKUBE),https://minikube.sigs.k8s.io/docs/start)
	$(need_kubectl)
	@$(MAKE) --no-print-directory image
	$(MINIKUBE) start --profile $(CLUSTER) --nodes 2 --container-runtime containerd \
		--cni "$(CURDIR)/conf/podwire.yaml"
	$(MINIKUBE) --profile $(CLUSTER) image load $(IMAGE)
	$(call deploy,$(CLUSTER))

wheel: $(RUNS) ## a wheel in build/
	@$(PIP) wheel --no-deps --wheel-dir build .

build: $(RUNS) ## the self-contained executable, build/podwire
	@echo "building build/podwire: a few minutes the first time"
	@$(BIN)/python -m launcher.build

clean: ## remove what make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
