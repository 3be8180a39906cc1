# Two commands are enough: `make demo` and `make test`. Both make .venv first; it takes a few minutes once.
PYTHON ?= python3
BIN := .venv/bin
# Compiled by whoever imports it first, and kept.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
export HF_HUB_OFFLINE := 1
unexport PYTHONDONTWRITEBYTECODE
export RAY_AUTH_MODE ?= token
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO ?= 0

.PHONY: setup demo test check clean

setup: .venv/ready

.venv/ready: requirements/local.txt pyproject.toml
	$(PYTHON) -m venv .venv
	grep -v '^#' requirements/local.txt | xargs -P 2 -n 64 $(PIP) --no-deps
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/python jobs/pipeline.py --config jobs/configs/sample.toml

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf store .mypy_cache .ruff_cache .pytest_cache .hypothesis
