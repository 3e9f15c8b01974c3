# make run    train the tiny model on the sample corpus, with its sidecar
# make test   lint, types and tests
# make test-faults    the slow tests of faults, half an hour at most
# All make .venv and install what they need into it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A directory of its own for each run: a second one leaves the first one's checkpoints alone.
RUN := outputs/$(shell date +%Y%m%d-%H%M%S)

.PHONY: run test test-faults lint clean say-run say-test

run: say-run $(VENV)/.run
	@mkdir -p $(RUN) && ln -sfn $(notdir $(RUN)) outputs/latest
	@$(BIN)/python -m telemetry run --data-dir outputs/telemetry -- \
	    $(BIN)/python -m trainer --model_size tiny --dataset sample --max_length 128 \
	    --batch_size 8 --learning_rate 3e-3 --max_steps 300 --log_interval 10 \
	    --eval_interval 100 --quant_interval 50 --output_dir $(RUN) --wandb_mode offline
	@echo "make: checkpoints are in $(RUN)/checkpoints, which is outputs/latest/checkpoints as well"

say-run:
	@echo "make: trains the tiny model for 300 steps, with its sidecar, into $(RUN);"
	@echo "make: about two minutes on two cores; the first time it installs 2 GB of packages before that"

test: say-test $(VENV)/.test lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

say-test:
	@echo "make: lint, types and more than 4,000 tests, about a quarter of an hour on two cores"

test-faults: $(VENV)/.test
	@echo "make: the slow tests of faults: about twenty minutes, half an hour at most"
	timeout --signal=INT 1800 $(BIN)/python -m pytest -m faults

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) can't make a virtual environment; \
	on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[trainer,telemetry,wandb,query]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[trainer,telemetry,wandb,query,dev]'
	touch $@

clean:
	rm -rf $(VENV) outputs replay
