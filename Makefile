# make demo   transform the demo model end to end (some 20 minutes on two cores), then: .venv/bin/transllm chat runs/demo-es
# make test   ruff, mypy and all tests
# make clean  remove .venv and caches; runs/ stays
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Empty, whatever it was: what is imported is compiled once and kept. Many containers forbid that, and every start then takes 8 seconds more.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(BIN)/transllm run recipes/demo-es.yaml

test: $(VENV)/.ready-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.ready-dev
	$(BIN)/python -m ruff check src tests benchmarks
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made anew where there is none, where its Python or pip does not start, and where an install was cut off:
# the mark `.installing` is laid before pip starts and taken away after it.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "transllm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $@")'
	@if [ -e $(VENV)/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Making the environment $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	@touch $(VENV)/.installing
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '$(1)'
	@rm -f $(VENV)/.installing
	@touch $@
endef

$(VENV)/.ready: pyproject.toml constraints.txt
	$(call install,.)

$(VENV)/.ready-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.ready
