# make demo   the main job on the artificial language family: no download of data or models
# make test   the tests
# make test-cluster   the bad days of a cluster, with real services and a stand-in for nodes (half an hour)
# make test-image   builds the image and runs it, alone and in Compose; needs Docker or Podman, and fails without
# make test-next   the tests with the newest packages that pyproject.toml allows
# make lint   ruff and mypy
# make docs   the site of docs/, into work/site; a dead link or a missing reference is an error
# make lock   resolve pyproject.toml into requirements/ again; LOCK="--upgrade-package torch" for a newer one
# make bench  the benchmarks, on a model of the size of mBERT; BENCH="--quick" or BENCH="storage plan" for less
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WORK ?= work
# One more than there are cores: many tests wait for a process or a server. Files with few tests are the longest: not last.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")

.PHONY: demo test test-slow test-cluster test-image test-next lint docs bench install lock clean
.DELETE_ON_ERROR:

install: $(STAMP)

# torch is the CPU build where pip finds it, else PyPI's; TORCH=cpu fetches the CPU build from PyTorch's own index.
$(STAMP): requirements/install.sh $(wildcard requirements/*.txt) pyproject.toml
	PYTHON=$(PYTHON) TORCH=$(TORCH) requirements/install.sh $(VENV)
	touch $@

lock: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" requirements/lock.sh $(LOCK)

demo: $(STAMP)
	$(BIN)/ltsft toy $(WORK)/toy
	$(BIN)/ltsft run configs/toy.yaml

test: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

test-cluster: $(STAMP)
	$(BIN)/pytest tests/cluster -m cluster

# BUILD has options for the build, such as `--build-arg BASE=...`.
test-image: $(STAMP)
	BUILD='$(BUILD)' $(BIN)/pytest tests/image -m image -s

test-next: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" requirements/install-next.sh $(VENV)-next
	$(VENV)-next/bin/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	requirements/install.sh $(VENV) docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet docs $(WORK)/site
	@echo "Open $(WORK)/site/index.html"

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(WORK)/toy $(WORK)/toy-store
