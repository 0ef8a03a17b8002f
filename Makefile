# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup-done

.PHONY: demo test lint check bench results clean

demo: $(SETUP)  ## set up, then run the main job on a real small model and print the comparison table
	$(BIN)/python -m benchmarks.quality.minilm

test: $(SETUP)  ## set up, then run all tests
	$(BIN)/python -m pytest -n 2

lint: $(SETUP)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test  ## what CI runs, but for the package builds

bench: $(SETUP)  ## the speed and memory claims, measured on this machine (needs 40 GB of disk, takes minutes)
	$(BIN)/python -m benchmarks.speed.startup
	$(BIN)/python -m benchmarks.speed.kernels
	$(BIN)/python -m benchmarks.speed.published_clustering
	$(BIN)/python -m benchmarks.speed.quantize_costs_a_copy --eight-b
	$(BIN)/python -m benchmarks.speed.onnx_speed
	$(BIN)/python -m benchmarks.speed.onnx_over_2gb
	$(BIN)/python -m benchmarks.speed.plan_in_seconds
	$(BIN)/python -m benchmarks.speed.inference

results: $(SETUP)  ## the pages of docs/results again (an hour; models that are not there are skipped with a sentence)
	DISABLE_CUDA=1 $(BIN)/python -m pip install --quiet --no-build-isolation -r requirements/benchmarks.txt
	for name in minilm cifar10 activations targets k_per_layer onnx_real_models onnx_strategies onnx_activations frontier; do \
		$(BIN)/python -m benchmarks.quality.$$name --docs || exit 1; \
	done

clean:  ## remove what the commands above made
	rm -rf $(VENV) .demo build dist

$(SETUP): requirements/dev.txt pyproject.toml CMakeLists.txt $(shell find native -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $(SETUP)
