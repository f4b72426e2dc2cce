# make demo    the main job on synthetic mammograms (make demo DATA=KIND:PATH for real ones, TASK=segment for masks)
# make test    all tests          make lint    style and types          make clean
PYTHON   ?= python3.11
DATA     ?= phantom
TASK     ?= classify
RUN      ?= runs/demo$(if $(filter segment,$(TASK)),-masks)$(if $(filter-out phantom,$(DATA)),-$(subst :,-,$(notdir $(DATA))))
PIP_ARGS ?=
VENV     := .venv
BIN      := $(VENV)/bin

# The quick way in by default: pinned versions, in a virtual environment of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,encoder]'
	@touch $@

.PHONY: install demo test lint format clean

install: $(VENV)/.installed

demo: install
	@$(BIN)/scorebayes demo --task '$(TASK)' --data '$(DATA)' --out '$(RUN)'

test: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --no-cov-on-fail

lint: install
	@$(BIN)/ruff check src tests benchmarks
	@$(BIN)/ruff format --check src tests benchmarks
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix --quiet src tests benchmarks
	@$(BIN)/ruff format --quiet src tests benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
