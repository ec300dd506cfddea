# Everything runs in .venv, made here from the lock; only git, make and Python 3.11 or 3.12 must be there.

# The first of these that is Python 3.11 or 3.12 and can make virtual environments. Each is run: a pyenv shim that is on
# the path does not work for every version.
PYTHON ?= python3.11 python3.12 python3
SUPPORTED := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
FOUND = $(shell for python in $(PYTHON); do $$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 3
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/bin/python:
	$(if $(FOUND),,$(error found no Python 3.11 or 3.12 with venv among $(PYTHON); on Debian 12 or Ubuntu 24.04 run \
		`sudo apt install python3-venv`, elsewhere `uv python install 3.12` and `make PYTHON=$$(uv python find 3.12)`))
	$(FOUND) -m venv $(VENV)

$(VENV)/installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked dependencies into $(VENV) (a few minutes)"
	@$(INSTALL) --no-deps --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/installed-test: requirements-test.lock $(VENV)/installed
	@$(INSTALL) --no-deps --require-hashes -r requirements-test.lock
	@touch $@

.PHONY: install
install: $(VENV)/installed  ## install the locked dependencies into .venv

.PHONY: repro
repro: $(VENV)/installed  ## run the pipeline; where data/ is empty, on the phantom
	@mitoflow data phantom --if-missing
	@dvc repro
	@mitoflow summary

.PHONY: test
test: $(VENV)/installed-test  ## run lint, types, import contracts and all tests
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	python -m pytest

.PHONY: test-fast
test-fast: $(VENV)/installed-test  ## run the tests that are neither slow nor end-to-end, in under two minutes
	python -m pytest -m "not slow and not e2e"

.PHONY: test-numpy2
test-numpy2:  ## run the tests of images, training and prediction with numpy 2, in .venv-numpy2 (needs uv)
	uv venv --quiet --clear --python $(FOUND) .venv-numpy2
	uv pip install --quiet --python .venv-numpy2 --override tests/numpy2.txt -e '.[test]'
	.venv-numpy2/bin/python -m pytest tests/io tests/data tests/models tests/training tests/inference

.PHONY: docs
docs: $(VENV)/installed-test  ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

.PHONY: test-faults
test-faults: $(VENV)/installed-test  ## inject faults many times and write docs/reliability.md (about 20 minutes)
	FAULT_COUNT=$${FAULT_COUNT:-1} FAULT_TABLE=docs/reliability.md python -m pytest tests/faults --dist worksteal

$(VENV)/installed-mutants: pyproject.toml $(VENV)/installed-test
	@$(INSTALL) --no-build-isolation -e '.[mutants]'
	@touch $@

.PHONY: mutants
mutants: $(VENV)/installed-mutants  ## change the code at many places, see whether tests fail, and write docs/reliability.md
	rm -rf mutants
	mutmut run
	mutmut results --all true | python -m tests.mutants docs/reliability.md

$(VENV)/installed-audit: pyproject.toml $(VENV)/installed
	@$(INSTALL) --no-build-isolation -e '.[audit]'
	@touch $@

.PHONY: audit
audit: $(VENV)/installed-audit  ## compare the dependencies, those of the server too, with published vulnerabilities
	@pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock 2> $(VENV)/audit.log \
		&& pip-audit --strict --progress-spinner off -r deploy/requirements.txt 2> $(VENV)/audit.log \
		|| { echo "audit: $$(tail -n 1 $(VENV)/audit.log)"; exit 1; }

$(VENV)/installed-bench: pyproject.toml $(VENV)/installed
	@$(INSTALL) --no-build-isolation -e '.[bench]' \
		&& touch $@ || echo "PyTorch could not be installed; its rows are left out"

.PHONY: bench
bench: $(VENV)/installed-bench  ## measure speed and memory against baselines (15 to 25 minutes)
	python -m benchmarks

.PHONY: ui
ui: $(VENV)/installed  ## open MLflow: runs, artifacts and the model registry
	@mitoflow ui

.PHONY: serve
serve: $(VENV)/installed  ## serve masks over HTTP, with the champion
	@mitoflow serve

.PHONY: app
app: $(VENV)/installed  ## open the web page that shows masks of images
	@mitoflow app

COMPILE := uv pip compile --quiet --python-version 3.11 --generate-hashes --custom-compile-command 'make lock'

.PHONY: lock
lock:  ## resolve pyproject.toml into the lock files (needs uv)
	$(COMPILE) pyproject.toml --extra test --extra dashboard -o requirements-test.lock
	$(COMPILE) pyproject.toml -c requirements-test.lock -o requirements.lock
	# The same pins must serve Python 3.12 too: nothing is missing and every package has a file for it.
	uv pip install --quiet --dry-run --python-version 3.12 --require-hashes --target $(VENV)/lock -r requirements-test.lock
