# `make help` lists the targets. The only requirement is Python 3.11 (3.10 and 3.12: make PYTHON=python3.12 ...).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
VENV_STOCK := .venv-stock
VENV_DOCS := .venv-docs
PYTEST := python -m pytest -q
QUICK := -m "not slow and not faults and not gpu"
# Two processes; the tests of a file stay together, because they share what is slow to build, and start in the order of
# tests/conftest.py. A lost process fails the run and does not come back. -n 0: one process.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
WORK := work_dirs/demo
# On Linux, PyPI's torch is the CUDA build, several gigabytes. Without an NVIDIA GPU, this index has a smaller build.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
NVIDIA_SMI ?= nvidia-smi
# The CUDA tests run in the active environment where it has torch, which is how a GPU machine is usually set up.
GPU_PYTHON ?= $(shell python3 -c 'import torch, pytest' 2>/dev/null && echo python3 || echo $(VENV)/bin/python)

.DEFAULT_GOAL := help
.PHONY: help torch-options setup demo demo-seg test test-all test-faults test-stock test-gpu coverage lint format docs wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# Options for pip: the CPU index if there is no GPU and the index answers within five seconds, nothing otherwise.
define torch_options
$$(if [ "$$(uname)" = Linux ] && ! command -v $(NVIDIA_SMI) >/dev/null && $(PYTHON) -c "import urllib.request; \
	urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=5)" 2>/dev/null; then echo "--extra-index-url $(CPU_INDEX)"; fi)
endef

# Each environment has a stamp: the checksum of the files that decide what is installed. Nothing is done while it holds.
# $(call setup_env,FOLDER,CONSTRAINTS)
define setup_env
	@want=$$(cat $(2) pyproject.toml setup.py Makefile | cksum); \
	if [ "$$(cat $(1)/.stamp 2>/dev/null)" != "$$want" ]; then \
	    set -e; echo "Setting up $(1); the next call skips this"; \
	    [ -x $(1)/bin/python ] && $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1); \
	    pip="$(1)/bin/python -m pip install --quiet --disable-pip-version-check"; \
	    torch_options="$(torch_options)"; \
	    [ -z "$$torch_options" ] || echo "No NVIDIA GPU: torch is installed from $(CPU_INDEX)"; \
	    $$pip torch==2.13.0 $$torch_options -c $(2); \
	    MMCV_WITH_OPS=0 $$pip --no-deps -r $(2); \
	    $$pip --no-deps --upgrade --target $(1)/oracle torchvision==0.29.2; \
	    $$pip --no-deps --no-build-isolation -e .; \
	    echo "$$want" > $(1)/.stamp; \
	fi
endef

torch-options:  # print the options of pip that choose torch's build
	@echo "$(torch_options)"

setup:  ## create .venv with everything that development needs (OneDL stack)
	$(call setup_env,$(VENV),constraints.txt)

demo: setup  ## train and evaluate Mask R-CNN on the built-in mini set
	$(VENV)/bin/python tools/train.py configs/detection/maskrcnn_v2_s2.py --mini --work-dir $(WORK)/detection
	@echo "The report: $(CURDIR)/$(WORK)/detection/report.html"

demo-seg: setup  ## train and evaluate Semantic FPN on the built-in mini set
	$(VENV)/bin/python tools/train.py configs/segmentation/semfpn_v2_s2.py --mini --work-dir $(WORK)/segmentation
	@echo "The report: $(CURDIR)/$(WORK)/segmentation/report.html"

test: setup  ## run the tests, except the slow and fault tests
	$(VENV)/bin/$(PYTEST) $(QUICK) $(PARALLEL)

test-all: setup  ## run all tests, the slow ones too
	$(VENV)/bin/$(PYTEST)

test-faults: setup  ## run the fault tests: 50 kills, signals, full disks, lost workers
	$(VENV)/bin/$(PYTEST) -m faults

test-stock:  ## run the tests with OpenMMLab's own last releases, in .venv-stock
	$(call setup_env,$(VENV_STOCK),constraints-stock.txt)
	$(VENV_STOCK)/bin/$(PYTEST) $(QUICK) $(PARALLEL)

test-gpu:  ## run the CUDA tests in the active environment; without a GPU they are skipped
	$(GPU_PYTHON) -m pytest -q -m gpu tests/gpu

coverage: setup  ## run the tests with branch coverage and write htmlcov/index.html
	$(VENV)/bin/$(PYTEST) $(QUICK) $(PARALLEL) --cov --cov-branch --cov-report=term --cov-report=html

lint: setup  ## check style, format and types (ruff, mypy)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

format: setup  ## fix style and format (ruff)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

docs:  ## build the documentation site in site/, in .venv-docs
	@want=$$(cat constraints-docs.txt | cksum); \
	if [ "$$(cat $(VENV_DOCS)/.stamp 2>/dev/null)" != "$$want" ]; then \
	    set -e; echo "Setting up $(VENV_DOCS); the next call skips this"; \
	    $(PYTHON) -m venv --clear $(VENV_DOCS); \
	    $(VENV_DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r constraints-docs.txt; \
	    echo "$$want" > $(VENV_DOCS)/.stamp; \
	fi
	@# The variable omits an advertisement of mkdocs-material about MkDocs 2.
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/python -m mkdocs build --strict

wheel: setup  ## build dist/mmplugin-*.whl, with configs and tools inside
	rm -rf build dist mmplugin.egg-info
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	rm -rf build
	@ls dist/*.whl

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) $(VENV_STOCK) $(VENV_DOCS) build dist site htmlcov .coverage work_dirs *.egg-info
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
