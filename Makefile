# make demo    install, then train the embedded example (a few minutes on two cores)
# make test    install, then everything that CI checks
SHELL := bash
VENV ?= .venv
EXTRA ?= $(or $(shell cut -d' ' -f2 $(VENV)/.rlkd-install 2>/dev/null),cpu)
BIN := $(VENV)/bin
OUT ?= runs/demo
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q

.PHONY: demo test test-maths lint install clean

demo: install
	$(BIN)/accelerate launch recipes/kdrl.yaml --out $(OUT) --resume
	$(BIN)/rlkd report $(OUT)

# Engine tests each start Ray, vLLM or DeepSpeed, and wait for imports more than they compute: two modules at a time.
test: lint
	$(PYTEST) tests/reward -m "not engine"  # by itself: it counts the machine's sandboxes and its children's memory
	$(PYTEST) -m "not engine" -n 2 --dist loadgroup --ignore tests/reward
	$(PYTEST) -m engine -n 2 --dist loadfile

test-maths: install
	$(PYTEST) tests/maths

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	set -e; for folder in tests/conftest.py tests/*/; do $(BIN)/mypy $$folder; done  # one by one: each folder has a conftest of its own
	$(BIN)/lint-imports

install:
	@VENV=$(VENV) launch/install.sh $(EXTRA)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find rlkd reward tests -name __pycache__ -type d -prune -exec rm -rf {} +
