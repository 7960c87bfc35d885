# Everything runs in its own environment in .venv, with the tested versions of constraints.txt.
# PYTHON=/path/to/python chooses the Python; PIP_OPTIONS adds options to pip install.
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# One thread per test process: two processes share the cores, and small tensors gain nothing from more.
FAST_TESTS := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m "not slow"

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs results policies cards benchmark clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.installed-demo ## Train on the embedded data, evaluate in the simulator, write outputs/
	$(BIN)/python scripts/demo.py

test: lint ## Run linters, the type checker and the fast tests, documentation included
	$(FAST_TESTS)

test-slow: $(VENV)/.installed-slow ## Run the tests that take longer than ten seconds, Ray's and the browser's among them
	OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile -m slow --ignore tests/scripts
	$(PYTEST) -m slow tests/scripts # these measure speed: nothing else may run

lint: $(VENV)/.installed-dev ## Run ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev ## Build the documentation strictly into outputs/site; the tests do it, too
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

results: $(VENV)/.installed-demo ## Train and evaluate again what the committed results hold
	$(BIN)/spi benchmark --suite safe --dataset datasets ballcircle=embedded --jobs 2 --output outputs/safe \
		--task-results results
	$(BIN)/python scripts/compare_assessments.py outputs/safe --output results/assess.json
	for task in ballcircle carcircle dronecircle; do \
		$(BIN)/python scripts/adapt.py outputs/safe/runs/$$task/spi/seed0 --cost-limit 20 --output results/adapt; done
	$(BIN)/python scripts/update_readme.py
	$(BIN)/python scripts/render_model_cards.py

policies: $(VENV)/.installed-demo ## Certify what `make results` trained, 200 episodes a limit, and rewrite policies/
	$(BIN)/python scripts/make_policies.py outputs/safe
	$(BIN)/python scripts/compare_students.py policies/* --output results/students.json
	$(BIN)/python scripts/update_readme.py

cards: $(VENV)/.installed-demo ## Render model_cards/ from the committed results
	$(BIN)/python scripts/render_model_cards.py

benchmark: $(VENV)/.installed-demo ## Measure the speed of training and of acting; rewrites results/benchmark_*.json
	$(BIN)/python scripts/benchmark_training.py
	$(BIN)/python scripts/benchmark_algorithms.py
	$(BIN)/python scripts/benchmark_inference.py
	$(BIN)/python scripts/benchmark_time_to_safe.py
	$(BIN)/python scripts/update_readme.py

clean: ## Remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Installed again only when these files change. All that `demo` needs, `dev` installs too.
$(VENV)/.installed-demo: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory $(BIN)/python
	@echo "Installing the demo's packages into $(VENV): a few minutes, once."
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory $(BIN)/python
	@echo "Installing the development packages into $(VENV): a few minutes, once."
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed-demo $@

$(VENV)/.installed-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e ".[dev,slow]"
	@touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3.11 python3 python); do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Creating $(VENV) with $$($$python --version)."; \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "error: '$$python -m venv' failed; on Debian and Ubuntu install python3-venv." >&2; exit 1; \
		fi; \
	done; \
	echo "error: no Python 3.11 or newer found (tried: $(or $(PYTHON),python3.11 python3 python))." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1
