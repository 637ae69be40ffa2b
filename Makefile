# `make demo` and `make test` are complete on a fresh machine: they create .venv, install what
# constraints.txt pins, build the kernels and run. A second run starts at once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
# The build finds the pinned cmake and ninja before the system's.
export PATH := $(abspath $(BIN)):$(PATH)
CPP_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Tests that need one of these fail without it, and never skip.
DEVICES := cpu
LIBRARIES := torchvision,timm,torch_pruning,lightning,transformers,accelerate,onnx,onnxscript,nncf,modelopt
NATIVE_SOURCES := setup.py CMakeLists.txt $(shell find csrc -type f)

# Stamps: what a file of this name says is done, is done.
TOOLS := $(VENV)/.tools
INSTALLED := $(VENV)/.installed
LIBRARIES_INSTALLED := $(VENV)/.libraries
LINTERS := $(VENV)/.linters

.PHONY: help demo test lint lint-python lint-types lint-cpp lint-results format bench tables clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build runs without isolation, so that it sees the pinned torch and fetches no other.
$(TOOLS): constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) torch setuptools cmake ninja
	touch $@

$(INSTALLED): $(TOOLS) $(NATIVE_SOURCES)
	$(PIP) --no-build-isolation -e '.[demo,test]'
	$(PIP) --no-deps torchvision timm  # their dependencies would fetch another torch
	$(PIP) pyyaml huggingface_hub safetensors  # what timm imports besides
	touch $@

$(LIBRARIES_INSTALLED): $(INSTALLED) constraints.txt pyproject.toml
	$(PIP) --no-build-isolation -e '.[integrations]'
	touch $@

$(LINTERS): $(TOOLS)
	$(PIP) ruff clang-format 'pyright[nodejs]' pre-commit
	touch $@

demo: $(INSTALLED) ## prune ResNet-20 on handwritten digits to 2% density, train and compare
	$(BIN)/python examples/demo.py

test: $(INSTALLED) $(LIBRARIES_INSTALLED) ## every test
	PXFAST_REQUIRE=$(DEVICES),$(LIBRARIES) $(BIN)/python -m pytest -n 2 --dist loadfile

lint: lint-python lint-types lint-cpp lint-results ## every check that needs no run

lint-python: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: $(INSTALLED) $(LIBRARIES_INSTALLED) $(LINTERS)  # which resolve what the adapters import
	$(BIN)/pyright --pythonpath $(BIN)/python pxfast

lint-cpp: $(LINTERS)
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

lint-results: $(TOOLS)
	$(BIN)/python bench/tables.py --check
	$(BIN)/python tests/integrations/matrix.py --check

format: $(LINTERS) ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

bench: $(INSTALLED) ## measure everything again (about two hours) and rewrite the tables
	$(BIN)/python bench/run.py score --model resnet20
	$(BIN)/python bench/run.py score --model resnet50 --repeats 3 --densities 1 0.5 0.02
	$(BIN)/python bench/run.py score --model mobilenet_v2 --repeats 5 --densities 1 0.5
	$(BIN)/python bench/run.py score --model vgg16 --images 16 --size 224 --repeats 3 --densities 1 0.5 0.02
	$(BIN)/python bench/run.py score --model vit_base_patch16_224 --repeats 3 --densities 1 0.5
	$(BIN)/python bench/run.py score --model vit_large_patch16_224 --alone --repeats 2 --densities 1
	$(BIN)/python bench/run.py prune --model resnet20
	$(BIN)/python bench/run.py prune --model resnet50
	$(BIN)/python bench/run.py official-noise
	$(BIN)/python bench/run.py quality
	$(BIN)/python bench/run.py quality --longer 3 --networks vit --starts init --densities 0.05 \
	  --methods px px-joint synflow snip magnitude 'magnitude, layerwise' random
	$(BIN)/python bench/run.py squared-linear
	$(BIN)/python bench/run.py squared-attention
	$(BIN)/python bench/run.py squared-conv2d
	$(BIN)/python bench/run.py sparse-dual-conv2d
	$(BIN)/python bench/run.py sparse-dual-linear
	$(BIN)/python bench/run.py masked-ones
	$(BIN)/python bench/run.py gate
	$(BIN)/python bench/run.py select
	$(BIN)/python bench/run.py select-threshold
	$(BIN)/python bench/run.py write-masks
	$(BIN)/python bench/run.py synflow
	$(MAKE) tables

tables: $(TOOLS) ## write the tables of the documents from bench/results and the tests
	$(BIN)/python bench/tables.py
	$(BIN)/python tests/integrations/matrix.py

clean: ## remove everything that make has made, .venv included
	rm -rf $(VENV) build dist demo-output *.egg-info pxfast/*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
