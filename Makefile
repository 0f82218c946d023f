PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq
EXTRAS := traffic,power,opf,ray,tensorboard,dev

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test lint types format clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.core ## install khop into .venv

install-dev: $(VENV)/.dev ## install khop with every extra and the development tools

demo: install ## train a platoon of eight vehicles on little real experience, evaluate and plot it (about two minutes)
	$(BIN)/khop train platoon-catchup mdpo --steps 9600

test: install-dev ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev ## check types
	$(BIN)/mypy

format: install-dev ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment, build products and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find khop tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below .venv mark what has been installed; each is older than pyproject.toml when that changes.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("khop needs Python 3.11 or newer; try: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip
	@touch $@

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/.created
	@echo 'Installing khop into $(VENV) (the first time takes a minute or so)'
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo 'Installing khop and every extra into $(VENV) (the first time takes a few minutes)'
	@$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(VENV)/.core $@
