# Two commands do everything on a fresh machine: `make demo` and `make test`. Needs Python 3.11, make and git.
# Heavy parts are cached by pip and uv; `make clean` removes what these targets made.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-vllm test-ray test-trainers test-farm faults lint bench report clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv and install envfarm with what demo and tests need

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"envfarm needs Python 3.11 or newer, this is {v.major}.{v.minor}; set PYTHON=")'
	@start=$$(date +%s); \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install -q uv && \
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,torch]' && \
	echo $$(( $$(date +%s) - start )) > $(STAMP) && echo "installed in $$(cat $(STAMP)) s"

demo: $(STAMP) ## The main job: log, imitate, improve offline, improve online, evaluate, report
	@ENVFARM_INSTALL_S=$$(cat $(STAMP)) $(BIN)/envfarm train examples/demo.yaml

test: $(STAMP) ## All tests: unit, property, conformance, end to end
	@$(BIN)/python -m pytest -n 2

test-vllm: $(STAMP) ## Tests on a real vLLM, in an environment of its own
	@$(BIN)/python -m tests.venvs vllm pytest

test-ray: $(STAMP) ## Tests on a real Ray and RLlib, in an environment of their own
	@$(BIN)/python -m tests.venvs ray pytest

test-trainers: $(STAMP) ## Tests against TRL, Tinker, verl and both interfaces of verifiers, each in its environment
	@$(BIN)/python -m tests.venvs trl pytest
	@$(BIN)/python -m tests.venvs verl pytest
	@$(BIN)/python -m tests.venvs verifiers0 pytest
	@$(BIN)/python -m tests.venvs verifiers1 pytest

test-farm: $(STAMP) ## Tests in real containers and pods: engine and cluster set up from nothing and taken down again (root)
	@k8s/testbed/test-farm.sh $(BIN)/python

lint: $(STAMP) ## Style, types and the direction of imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

faults: $(STAMP) ## Kill everything once, and say in one table what was lost
	@$(BIN)/python -m tests.faults

bench: $(STAMP) ## Every benchmark in benchmarks/, each beside its peer
	@$(BIN)/python -m benchmarks

report: $(STAMP) ## Build the HTML report of the demo run again
	@$(BIN)/envfarm report runs/demo

clean: ## Remove the environment and the demo run
	rm -rf $(VENV) .venvs runs/demo
