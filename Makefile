# `make help` lists the targets. Nothing is needed but Python 3.11 (or 3.10, 3.12: make PYTHON=python3.12 ...).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
VENV_STOCK := .venv-stock
PYTEST := python -m pytest -q
WORK := work_dirs/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-seg test test-all test-stock lint wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

# A stamp holds the hash of the files that decide what is installed: unchanged, set-up costs nothing.
# $(call setup_env,FOLDER,CONSTRAINTS)
define setup_env
	@want=$$(cat $(2) setup.py Makefile | cksum); \
	if [ "$$(cat $(1)/.stamp 2>/dev/null)" != "$$want" ]; then \
	    set -e; echo "Setting up $(1), once"; \
	    [ -x $(1)/bin/python ] && $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1); \
	    pip="$(1)/bin/python -m pip install --quiet --disable-pip-version-check"; \
	    $$pip torch==2.13.0 -c $(2); \
	    MMCV_WITH_OPS=0 $$pip --no-deps -r $(2); \
	    $$pip --no-deps --upgrade --target $(1)/oracle torchvision==0.29.2; \
	    $$pip --no-deps --no-build-isolation -e .; \
	    echo "$$want" > $(1)/.stamp; \
	fi
endef

setup:  ## make .venv with everything (OneDL stack)
	$(call setup_env,$(VENV),constraints.txt)

demo: setup  ## train and evaluate Mask R-CNN on the built-in mini set
	$(VENV)/bin/python tools/train.py configs/detection/maskrcnn_v2_s2.py --mini --work-dir $(WORK)/detection
	@echo "The report: $(CURDIR)/$(WORK)/detection/report.html"

demo-seg: setup  ## the same for Semantic FPN
	$(VENV)/bin/python tools/train.py configs/segmentation/semfpn_v2_s2.py --mini --work-dir $(WORK)/segmentation
	@echo "The report: $(CURDIR)/$(WORK)/segmentation/report.html"

test: setup  ## all tests but the slow ones
	$(VENV)/bin/$(PYTEST) -m "not slow"

test-all: setup  ## all tests, minutes more
	$(VENV)/bin/$(PYTEST)

test-stock:  ## the tests on OpenMMLab's own last releases, in .venv-stock
	$(call setup_env,$(VENV_STOCK),constraints-stock.txt)
	$(VENV_STOCK)/bin/$(PYTEST) -m "not slow"

lint: setup  ## ruff
	$(VENV)/bin/python -m ruff check .

wheel: setup  ## dist/mmplugin-*.whl, with configs and tools inside
	rm -rf build mmplugin.egg-info
	$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	rm -rf build
	@ls dist/*.whl

clean:  ## remove both environments and everything that was built
	rm -rf $(VENV) $(VENV_STOCK) build dist work_dirs *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
