# The version is run, not just looked up: a version manager's shim may be on PATH
# for a Python that is not there.
PYTHON := $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
# Test processes; 0 runs the tests in pytest's own process.
JOBS := 2
# More options for pytest.
PYTEST_ARGS :=

BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
# One stamp for each Python version, so that another PYTHON installs again.
DEMO_STAMP := $(VENV)/.demo-$(VERSION)
DEV_STAMP := $(VENV)/.dev-$(VERSION)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo controller test test-slow lint format clean
.DELETE_ON_ERROR:

# An environment of another Python version, or one that no longer runs, is built
# anew. Only a folder that is an environment is ever emptied. TF-Agents comes last
# because the extras cannot list it on Python 3.12 and later (see setup.py); on 3.11
# it is there already.
define install
@$(BIN)/python -c 'import pip, platform, sys; \
	sys.exit(platform.python_version() != "$(VERSION)")' 2>/dev/null \
	|| $(PYTHON) -m venv $$(test -f "$(VENV)/pyvenv.cfg" && echo --clear) "$(VENV)"
$(BIN)/python -m pip install --editable '.[$(1)]'
$(BIN)/python -m pip install --no-deps tf-agents==0.19.0
@touch $@
endef

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) JOBS=$(JOBS) PYTEST_ARGS=$(PYTEST_ARGS)"

demo: $(DEMO_STAMP) ## Install what the demo needs and run it.
	$(BIN)/keras-learned-lr demo

controller: $(DEMO_STAMP) ## Train the two that decide together, as those that ship, or go on: an hour and a half on a core.
	$(BIN)/keras-learned-lr train default --to runs/default $(if $(wildcard runs/default/config.json),--resume)
	$(BIN)/keras-learned-lr train memory --to runs/memory $(if $(wildcard runs/memory/config.json),--resume)
	$(BIN)/keras-learned-lr export runs/default/controller/learned_lr runs/memory/controller/learned_lr --to runs/controller/learned_lr

test: lint ## Lint, check types and run the tests, except the slow ones.
	$(PYTEST)

test-slow: $(DEV_STAMP) ## Run the slow tests.
	$(PYTEST) -m slow

lint: $(DEV_STAMP) ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## Format the code and sort its imports.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Delete the environment, caches and build output.
	if test -f "$(VENV)/pyvenv.cfg"; then rm -rf "$(VENV)"; fi
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_STAMP): setup.py pyproject.toml
	$(call install,demo)

$(DEV_STAMP): setup.py pyproject.toml
	$(call install,dev)
