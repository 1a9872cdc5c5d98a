# SPDX-License-Identifier: GPL-2.0-or-later
# Everything happens in .venv, which is made from $(PYTHON); nothing is installed outside this directory.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml setup.py $(shell find src -name '*.py' -o -name '*.typed' -o -name '*.parquet' -o -path '*/page/*' -o -path '*/templates/*' -o -name '*.c' -o -path '*/data/costs/*')

.PHONY: install demo results test test-verify test-race race-weak test-mutation test-kernel test-programs kernel-long bench docs lint clean

install: $(VENV)/installed

demo: install
	$(BIN)/rmaplab compare -- $(BIN)/python -m rmaplab.example

test: lint
	$(BIN)/python -m pytest -n 2

# 200,000 random steps over all designs; docs/verification.md has the longer campaigns.
test-verify: install
	$(BIN)/rmaplab verify --steps 210000 --every 1

# Every interleaving of every scenario (docs/races.md), with both designs that keep their promises; then, under weak
# memory, a part of them, and scenarios of one operation with and without each ordering (docs/memory-model.md).
# race-weak tries all scenarios of both designs under weak memory, pairs of operations with two preemptions at most.
test-race: install
	$(BIN)/rmaplab race --jobs 2
	$(BIN)/rmaplab race --jobs 2 --memory weak --rmap anon_vma "restore / "
	$(BIN)/rmaplab race --jobs 2 --memory weak --rmap cow_context "referenced / fork" "unmap / fork" "restore / fork"
	$(BIN)/rmaplab race --jobs 2 --barriers anon_vma --timelines 0
	$(BIN)/rmaplab race --jobs 2 --barriers cow_context --timelines 0 --limit 100

race-weak: install
	$(BIN)/rmaplab race --jobs 2 --memory weak --pairs 2

# Which changes of mm/, rmap/ and sync/locks.py does no check notice?  docs/verification.md judges those that survive.
test-mutation: $(VENV)/tools
	@$(PIP) install -r requirements-mutation.lock
	$(BIN)/python scripts/mutation.py --sample 70 --seed 1

# Kernels are fetched as Debian packages into the user's cache; QEMU has to be there.
test-kernel: $(VENV)/tools
	RMAPLAB_KERNEL=1 $(BIN)/python -m pytest -rA tests/kernel

# Programs as they come, each recorded, replayed and held against the kernel's mappings: docs/programs.md.
test-programs: install
	$(BIN)/python scripts/record_programs.py

kernel-long: $(VENV)/tools
	$(BIN)/rmaplab kernel setup
	$(BIN)/rmaplab kernel compare --steps 100000 --seed 1000000 --jobs 4

bench: $(VENV)/tools
	$(BIN)/python -m bench

# Which design wins where, on every workload and recording: docs/results.md, and the tables and pictures of docs/answer.md.
results: install
	$(BIN)/rmaplab sweep docs/results.toml -o build/results
	$(BIN)/rmaplab sweep docs/hard.toml -o build/hard
	$(BIN)/rmaplab report build/results
	$(BIN)/rmaplab report build/results --markdown docs/results.md
	$(BIN)/python scripts/answer.py

# Sphinx reads docstrings from the sources: compiled modules have none.
docs: $(VENV)/tools
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html is where to start"

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "rmaplab needs Python 3.11 or newer, which $(PYTHON) is not: say make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$(PYTHON) could not make a virtual environment: on Debian, apt-get install python3-venv" >&2; exit 2; }
	@echo "installing what the build needs into $(VENV)"
	@$(PIP) install -c requirements-dev.lock 'setuptools>=77' 'mypy[mypyc]' numpy msgspec mypy_extensions
	@touch $@

# What setuptools left in build/ would be installed again, also where its source is gone.
$(VENV)/installed: $(VENV)/made $(SOURCES)
	@rm -rf build/lib* build/bdist*
	@echo "installing rmaplab into $(VENV) (compiling it takes some minutes)"
	@mkdir -p build
	@$(PIP) -vv install --no-build-isolation -c requirements-dev.lock . >build/install.log 2>&1 || \
	{ tail -n 60 build/install.log >&2; exit 1; }
	@grep '^ *rmaplab:' build/install.log || true
	@$(BIN)/python -c 'import rmaplab; print("rmaplab", rmaplab.__version__, "is installed,", rmaplab.build_info())'
	@touch $@

$(VENV)/tools: $(VENV)/installed requirements-dev.lock
	@echo "installing the tools of development into $(VENV)"
	@$(PIP) install -r requirements-dev.lock
	@touch $@
