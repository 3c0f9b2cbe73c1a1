# Every target sets up .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: setup sweep sync test test-cluster lint format bench clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /: /'

setup: .venv/installed  ## make .venv with the exact versions of constraints.txt

.venv/installed: pyproject.toml constraints.txt
	@# An environment without pip, of an older Python, or whose setting up was cut off is made anew.
	@test ! -e .venv/begun && $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Setting up .venv (PyTorch and Ray: several minutes, 7 GB)"; \
	  $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None' \
	  && rm -rf .venv && $(PYTHON) -m venv .venv; }
	@touch .venv/begun
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
	  || { rm .venv/begun; exit 1; }
	@rm .venv/begun
	@touch $@

sweep: setup  ## run the learning-rate x batch-size sweep (Figure 6); ARGS='--scale laptop --seeds 2'
	$(BIN)/python sweeps/lr_batch.py $(ARGS)

test: setup  ## run the tests; ARGS='tests/theory/test_bounds.py -k lemma7'
	@# Three at once, as some wait. Sweeps take both cores by themselves and come last. 5: ARGS name
	@# none of this half.
	@begun=$$(date +%s); \
	  $(BIN)/python -m pytest -n 3 --dist worksteal -m 'not ray and not cluster' $(ARGS) || test $$? -eq 5 || exit 1; \
	  $(BIN)/python -m pytest -m ray $(ARGS) || test $$? -eq 5 || exit 1; \
	  echo "make test took $$(($$(date +%s) - begun)) s"

test-cluster: setup  ## ray up, a sweep and a lost host on three hosts of namespaces; needs root
	$(BIN)/python -m pytest -m cluster -s tests/end_to_end/test_ray_up.py $(ARGS)

sync: setup  ## upload the W&B runs that were kept offline, of results/ or ARGS=FOLDER
	@$(BIN)/python -m gisgd_ray.tracking.sync "$(or $(ARGS),results)"

lint: setup  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup  ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## the timings behind the README's figures (several minutes)
	$(BIN)/python -m benchmarks $(ARGS)

clean:  ## remove .venv and caches; results are kept
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
