# Everything is installed into .venv, on top of the active Python's torch where it has one.
#
#   make demo                    train, evaluate and plot on this machine
#   make test                    the tests; make test-thorough also runs the further cases
#   PYTHON=python3.12 make test  another Python (3.10 or newer; only while .venv does not exist)

PYTHON ?= python3
# Installed only where PYTHON has no torch of its own.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
SUITE_ARGS ?=
# Processes by cores and memory (tests/conftest.py); what shares a long preparation stays together.
PYTEST_WORKERS ?= auto
# What must be here, or tests fail instead of skipping (tests/needs.py): what setup installs.
CLIPFAST_REQUIRE ?= extension$(if $(filter Linux,$(shell uname -s)),$(comma)triton$(comma)packages)
comma := ,

# How many calls, and from which seed (--count, --seed, --jobs).
SANITIZE_ARGS ?=
SANITIZED := build/sanitized

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# ninja, deepspeed and the compilers they start are looked for on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
# Whatever measures one subject; benchmarks/parts holds what they share. The tables come last, from
# the rows. The suite runs the same benchmarks, smaller.
BENCHMARKS = $(filter-out suite report tables,$(basename $(notdir $(shell grep -l '__main__' benchmarks/*.py))))
# Pinned, because a formatter's next release may format otherwise. setup.py's [dev] says the same.
LINTERS := "ruff>=0.17,<0.18" "clang-format==23.*"
# Beside torch, whose types it reads.
TYPES := "mypy>=2.4,<2.5"
# The site's generator; setup.py's [docs] says the same. A test compares them.
SITE := "mkdocs>=1.6,<2" "mkdocs-material>=9.7,<10" "mkdocstrings[python]>=1.0,<2"

.PHONY: help setup test test-thorough sanitize lint format demo suite bench docs env clean
.DEFAULT_GOAL := help

help:
	@echo "make setup    install into $(VENV) (again only after setup.py, pyproject.toml or csrc change)"
	@echo "make demo     setup, then train the small recipe, evaluate it, and write demo/*.png"
	@echo "make test     setup, then the tests (PYTEST_ARGS='-k loss -x' to choose)"
	@echo "make test-thorough  the same with the further cases that are marked thorough"
	@echo "make sanitize csrc's CPU half under AddressSanitizer and UBSan, and calls of all its operators"
	@echo "make lint     ruff, clang-format and mypy, changing nothing"
	@echo "make format   ruff and clang-format, in place"
	@echo "make suite    setup, then tests and benchmarks in 8 minutes (SUITE_ARGS='--minutes 60')"
	@echo "make bench    setup, then the benchmarks; rows go to benchmarks/results, tables to docs"
	@echo "make docs     the site, into site/ (open site/index.html); a dead link fails"
	@echo "make env      setup, then what this machine has and what was built for it"
	@echo "make clean    remove what was built (CLEAN_VENV=1: $(VENV) too)"

setup: $(STAMPS)/packages $(STAMPS)/extension

# The active Python's packages are reached through a .pth file and not --system-site-packages: that
# option sees only the base Python, so a torch in an active virtual environment would be missed.
$(STAMPS)/torch:
	@echo "[setup] $(VENV): creating it with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed" if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@if ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  if site=$$($(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null); then \
	    echo "[setup] using the torch that $(PYTHON) has"; \
	    echo "$$site" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer-torch.pth; \
	  else \
	    echo "[setup] installing $(TORCH)"; \
	    $(PIP) install "$(TORCH)"; \
	  fi; \
	fi
	@echo "[setup] installing build tools"
	@$(PIP) install numpy "setuptools>=64" wheel pybind11 $(TYPES)
# Programs, not modules: one in the outer Python's bin would not be found.
	@$(PIP) install --ignore-installed --no-deps ninja $(LINTERS)
# The package's version, not torch.__version__: that one adds "+cu130", which the index lacks.
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/constraints.txt
	@touch $@

# The constraints file keeps the torch that is here: a dependency could otherwise pull another one,
# of several GB. Peers for tests and benchmarks come without their own requirements for that reason.
$(STAMPS)/packages: $(STAMPS)/torch setup.py pyproject.toml
	@train=$$($(BIN)/python -c 'import torch; print("train-cuda12" if (torch.version.cuda or "").startswith("12") else "train")'); \
	echo "[setup] compiling csrc, installing clipfast[$$train,dev]"; \
	$(PIP) install -c $(VENV)/constraints.txt -e ".[$$train,dev]" --no-build-isolation
	@echo "[setup] installing peers: open_clip_torch, timm, clip_benchmark, torchvision"
	@$(PIP) install -c $(VENV)/constraints.txt --no-deps open_clip_torch timm clip_benchmark
# Beside a CPU torch the index's torchvision does not import: torch's own index has one that does.
	@vision=$$($(BIN)/python -c 'import torch; a, b = torch.__version__.split(".")[:2]; print("0.%d" % (int(b) + 15))'); \
	built_for=$$($(BIN)/python -c 'import torch; print(torch.__version__.partition("+")[2] or "index")'); \
	{ test "$$built_for" = cpu && $(PIP) install --no-deps --retries 0 --timeout 30 \
	  --index-url https://download.pytorch.org/whl/cpu "torchvision==$$vision.*" 2>/dev/null; } || \
	$(PIP) install -c $(VENV)/constraints.txt --no-deps "torchvision==$$vision.*"
	@$(BIN)/python -m clipfast.env --peers | sed 's/^/[setup] /'
	@touch $@

# Apart from the packages, so that a change of csrc only compiles.
$(STAMPS)/extension: $(STAMPS)/packages $(SOURCES)
	@if [ -n "$$(find $(SOURCES) -newer $(STAMPS)/packages)" ]; then \
	  echo "[setup] compiling csrc"; \
	  $(PIP) install -e . --no-build-isolation --no-deps; \
	fi
	@touch $@

RUN_TESTS = CLIPFAST_REQUIRE=$(CLIPFAST_REQUIRE) $(BIN)/python -m pytest \
  -n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)
# Tests of a GPU run apart from the others, which start programs that would take it. Status 5 is that
# PYTEST_ARGS chose none of them.
test: setup
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  set -x; CUDA_VISIBLE_DEVICES= $(RUN_TESTS) && { $(RUN_TESTS) -m gpu || test $$? = 5; }; \
	else set -x; $(RUN_TESTS); fi

test-thorough:
	@$(MAKE) test PYTEST_ARGS='--thorough $(PYTEST_ARGS)'

# The installed extension stays as it is; torch itself is not built for it, so its runtime is loaded
# before Python.
sanitize: setup
	CLIPFAST_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib $(SANITIZED)
	CLIPFAST_TRY_EXTENSION=$$(ls $(CURDIR)/$(SANITIZED)/clipfast/_C*.so) \
	CLIPFAST_TRY_PRELOAD=$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libubsan.so) \
	$(BIN)/python -m tests.campaigns.calls $(SANITIZE_ARGS)

lint: $(STAMPS)/torch
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/python -m mypy

format: $(STAMPS)/torch
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format
	$(BIN)/clang-format -i $(SOURCES)

# As a module: where deepspeed belongs to the outer Python, .venv has no deepspeed program.
# The floors lie below the lowest of five seeds, 0.906 and 0.165: what falls under them has broken.
FLOORS := eval/sample/noto/image_to_text/R@1 0.85 eval/sample/twemoji/image_to_text/R@1 0.13
demo: setup
	@port=$$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'); \
	set -x; $(BIN)/python -m deepspeed.launcher.runner --master_port $$port recipes/emoji.py \
	  --eval.floors $(FLOORS)

suite: setup
	$(BIN)/python -m benchmarks.suite $(SUITE_ARGS)

bench: setup
	@set -e; for name in $(BENCHMARKS); do \
	  echo "[bench] $$name"; $(BIN)/python -m benchmarks.$$name; \
	done
	@$(BIN)/python -m benchmarks.report

$(STAMPS)/site: $(STAMPS)/torch Makefile
	@echo "[docs] installing mkdocs-material and mkdocstrings"
	@$(PIP) install -c $(VENV)/constraints.txt $(SITE)
	@touch $@

# Sources are read and not imported, so nothing is compiled for it.
docs: $(STAMPS)/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "[docs] open site/index.html; its search needs a server: python -m http.server -d site"

env: setup
	@$(BIN)/python -m clipfast.env

clean:
	rm -rf build dist *.egg-info clipfast/_C*.so demo site .pytest_cache .ruff_cache $(if $(CLEAN_VENV),$(VENV))
	find clipfast kernels recipes benchmarks tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(STAMPS)/packages $(STAMPS)/extension
