# Two commands set everything up on a machine with Python 3.11+ and make: `make demo` and `make test`.
# Every path is relative, so that a checkout below a folder with a space in its name works too.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SEGNET := fixtures/segnet_basic

.PHONY: help demo test quick trainers fuzz grid ports memory check lint types contract proto docs wheel format clean

help: ## list the commands; PYTHON=python3.12 says which Python makes the environment
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed ## translate SegNetBasic's prototxts: the report, and build/segnet_basic_optimizer.py
	@mkdir -p build
	$(PY) -m caffe2torch translate $(SEGNET)/train.prototxt $(SEGNET)/solver.prototxt \
		--output build/segnet_basic_optimizer.py --force

test: $(VENV)/.installed-dev ## run every test
	$(PY) -m pytest -n 2

quick: $(VENV)/.installed-dev ## run the tests that are quick and need nothing beside the repository, half a minute
	$(PY) -m pytest -n 2 -q -m "not slow and not shared and not large"

trainers: $(VENV)/.installed-trainers ## run the tests with Lightning, Accelerate, the HF Trainer and LoRA
	$(PY) -m pytest tests/trainers "tests/docs/test_docs.py::test_every_example_of_the_page_runs[trainers.md]"

fuzz: $(VENV)/.installed-dev ## feed damaged files to every reader, 60 seconds in all (FUZZ_SECONDS)
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(PY) -m pytest -s tests/fuzz

grid: $(VENV)/.installed-dev ## audit 2,268 right ports and 1,000 with planted mistakes, an hour or so (GRID_SEED)
	GRID_SEED=$${GRID_SEED:-2026} GRID_CASES=1000 $(PY) -m pytest -n auto tests/verification/test_grid.py -rP

ports: $(VENV)/.installed-dev ## bind 1,200 edited ports and compare with every way to lay net onto port, a minute
	PORTS_CASES=600 $(PY) -m pytest tests/binding/test_port_family.py tests/binding/test_branch_family.py -s

memory: $(VENV)/.installed-dev ## read a megabyte of every kind of text in at most 60 times its size, four minutes
	MEMORY_KINDS=all $(PY) -m pytest tests/prototxt/test_memory.py -s

check: lint types contract ## lint, types, import contract, and that compiled schemas are not stale
	$(PY) proto/compile.py --check

lint: $(VENV)/.installed-dev ## ruff, its rules and its format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict
	$(PY) -m mypy

contract: $(VENV)/.installed-dev ## who imports whom
	$(VENV)/bin/python -c "from importlinter.cli import lint_imports_command as c; c()"

proto: $(VENV)/.installed-dev ## compile proto/*.proto again
	$(PY) proto/compile.py

docs: $(VENV)/.installed-dev ## build the site, as site/
	$(PY) -m mkdocs build --strict --quiet

wheel: $(PY) ## build the wheel and the source distribution, as dist/
	$(PY) -m pip install --quiet build
	$(PY) -m build --quiet

format: $(VENV)/.installed-dev ## rewrite the code in the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "caffe2torch needs Python 3.11 or newer, \
	and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-trainers: pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable '.[dev,trainers]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist site
