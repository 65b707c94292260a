# `make` lists the targets. Two matter to a newcomer: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
# Where PyPI's torch would bring gigabytes of CUDA for a machine without a GPU.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Settings for `make serve`, for example: make serve ARGS="--port 8001 --max-replicas 2"
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_PROGRESS_BAR ?= on

.DEFAULT_GOAL := help
.PHONY: help serve test check unit model fix docs web bench bench-start bench-peers chaos audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

serve: $(VENV)/installed ## install what is missing and start the service on 127.0.0.1:8000
	@exec $(BIN)/headcount serve $(ARGS)

test: $(VENV)/installed-dev model check ## every check and every test that this machine can run
	$(BIN)/pytest

check: $(VENV)/installed-dev ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev ## the quick tests only: no Ray, no browser
	$(BIN)/pytest -m "not cluster"

model: $(VENV)/installed ## fetch and prepare the default model
	$(BIN)/headcount model prepare

fix: $(VENV)/installed-dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev ## bring the generated parts of docs/ up to date
	$(BIN)/python -m service.metrics.catalog
	$(BIN)/python -m service.metrics.dashboards deploy/grafana/dashboards
	$(BIN)/python -m tests.k8s.regenerate

web: ## build the page (needs npm)
	cd service/web && npm ci && npm run check && npm run build

bench: $(VENV)/installed-dev model ## throughput of the engine against the machine's roof and transformers
	$(BIN)/headcount bench --against transformers

bench-start: $(VENV)/installed model ## how long a replica takes to its first token, and what a second one adds in memory
	$(BIN)/python -m service.bench.cold_start

bench-peers: $(VENV)/installed-dev model ## other engines on the same weights, here and now; installs them into .peers/ (an hour, gigabytes)
	$(BIN)/python -m service.bench.peers

chaos: $(VENV)/installed ## kill what can be killed under load, and account for every request
	$(BIN)/python -m service.bench.chaos

audit: $(VENV)/installed-dev ## known vulnerabilities of the pinned packages (needs PyPI)
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r deploy/constraints.txt

clean: ## remove the virtual environment and caches (not the downloaded models)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Debian has the venv module without ensurepip unless python3-venv is installed: then the system's pip brings pip along.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }

# The CPU build from wherever pip is set up to look, else from PyTorch's own index; the default build where there is a GPU.
$(VENV)/torch-$(TORCH): | $(VENV)/bin/pip
	@echo "Installing PyTorch $(TORCH) …"
	@if [ "$$(uname -s)" != Linux ] || [ -e /dev/nvidiactl ]; then \
		$(BIN)/pip install -q torch==$(TORCH); \
	else \
		$(BIN)/pip install -q "torch==$(TORCH)+cpu" 2>/dev/null || \
		$(BIN)/pip install -q "torch==$(TORCH)+cpu" --extra-index-url $(TORCH_CPU_INDEX); \
	fi
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/torch-$(TORCH)
	@echo "Installing Headcount …"
	@$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(BIN)/pip install -q -e '.[dev]'
	@touch $@
