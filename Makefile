# make run    train the tiny model on the sample corpus, with its sidecar
# make test   lint, types and tests
# make test-faults    the slow tests of faults, ten minutes at most
# All make .venv and install what they need into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-faults lint clean

run: $(VENV)/.run
	$(BIN)/python -m telemetry run --data-dir outputs/telemetry -- \
	    $(BIN)/python -m trainer --model_size tiny --dataset sample --max_length 128 \
	    --batch_size 8 --learning_rate 3e-3 --max_steps 300 --log_interval 10 \
	    --eval_interval 100 --quant_interval 50 --output_dir outputs --wandb_mode offline

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

test-faults: $(VENV)/.test
	timeout --signal=INT 600 $(BIN)/python -m pytest -m faults

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) can't make a virtual environment; \
	on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[trainer,telemetry,wandb]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[trainer,telemetry,wandb,dev]'
	touch $@

clean:
	rm -rf $(VENV) outputs replay
