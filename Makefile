# make demo      pretrain a small MAE on scikit-learn's digits, into ./demo; run again to resume or to see the report
# make test      lint, then the tests, side by side on all cores
# make test-gpu  what only a GPU shows; make test hides the GPU
# make lint      ruff, the import contracts, mypy
# make clean     remove caches and build outputs; ./demo and .venv stay

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu lint clean

demo: .venv/installed
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/run_pretrain.py --recipe mae-vit-tiny-digits --output_dir demo --resume_from_checkpoint latest
	$(BIN)/python examples/report_demo.py demo

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

test-gpu: .venv/installed-test
	SSL_HUB_TEST_GPU=1 $(BIN)/python -m pytest tests/training/test_cuda.py

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
