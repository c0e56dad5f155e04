# Short names for everything; `make` alone lists them. All goes into this folder (.venv, .cache, build); nothing is installed outside it.
PYTHON ?= python3
IMAGE  ?= localhost/poiesis:dev
ARGS   ?=

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CLUSTER := ../shared/cluster

export PIP_DISABLE_PIP_VERSION_CHECK := 1
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help venv launcher demo up test lint format e2e bench chaos image lock docs clean distclean

help: ## this list
	@echo "make TARGET [PYTHON=python3] [ARGS='more arguments for the command']"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## .venv with the exact versions of requirements/dev.txt and this package, editable; no work when nothing changed

$(STAMP): requirements/dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Poiesis needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || true). Name another one: make venv PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

launcher: ## the static program that runs executors, to poiesis/bin/launcher-ARCH (skipped where there is no C compiler)
	@if [ ! -f launcher/Makefile ]; then echo "launcher: no launcher/Makefile, skipped"; \
	elif ! command -v musl-gcc >/dev/null && ! command -v cc >/dev/null; then echo "launcher: no C compiler (Debian: apt-get install musl-tools), skipped"; \
	elif $(MAKE) -C launcher; then \
	  arch=$$(uname -m | sed 's/^x86_64$$/amd64/; s/^aarch64$$/arm64/'); \
	  mkdir -p poiesis/bin && install -m 0755 launcher/build/launcher poiesis/bin/launcher-$$arch; \
	elif command -v musl-gcc >/dev/null; then exit 1; \
	else echo "launcher: this compiler cannot build it (static libc missing? Debian: apt-get install musl-tools), skipped"; fi

demo: venv launcher ## start the whole service here, post a real task to it, show the result
	$(BIN)/python -m poiesis demo $(ARGS)

up: venv launcher ## start the whole service here and keep it running
	$(BIN)/python -m poiesis up $(ARGS)

test: venv launcher ## every test that needs no cluster; servers are started by the tests themselves
	$(BIN)/pytest -n auto -m "not e2e and not chaos" $(ARGS)

lint: venv ## ruff, mypy and the import direction; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

e2e: venv ## tests on a real cluster: KUBECONFIG, with IMAGE on its node
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/integration/kubernetes tests/e2e -m "e2e and not chaos" --timeout 600 $(ARGS)

chaos: venv ## kill processes at every step on a real cluster, and count what was lost
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e -m chaos -s --timeout 1200 $(ARGS)

bench: venv ## the measurements, as bench/ prints them
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/python -m bench $(ARGS)

image: ## IMAGE from docker/Dockerfile, with the first builder found
	@if [ -x $(CLUSTER)/build ]; then set -x; $(CLUSTER)/build -t $(IMAGE) -f docker/Dockerfile .; \
	elif command -v docker >/dev/null; then set -x; docker build -t $(IMAGE) -f docker/Dockerfile .; \
	elif command -v podman >/dev/null; then set -x; podman build -t $(IMAGE) -f docker/Dockerfile .; \
	elif command -v buildah >/dev/null; then set -x; buildah build -t $(IMAGE) -f docker/Dockerfile .; \
	else echo "image: found none of docker, podman, buildah" >&2; exit 1; fi

# The pins stay where they are until `make lock ARGS=--upgrade`. One resolution for every platform from Python 3.11 on; no index URL is written.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' $(ARGS)
lock: venv ## requirements/*.txt again from setup.cfg (ARGS=--upgrade for newer versions)
	$(COMPILE) setup.cfg requirements/build.in --extra flower --extra sftp -o requirements/lock.txt
	$(COMPILE) setup.cfg requirements/build.in --all-extras -c requirements/lock.txt -o requirements/dev.txt
	@! grep -nE '://|^--|file:|$(CURDIR)' requirements/*.txt || { echo "lock: an address or a path stands in a lock file" >&2; exit 1; }

docs: venv ## the documentation as HTML in docs/_build
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build $(ARGS)

clean: ## remove what was built and measured; .venv and .cache stay
	rm -rf build dist docs/_build htmlcov coverage.xml .coverage .coverage.* *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis poiesis/bin
	find poiesis tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@[ ! -f launcher/Makefile ] || $(MAKE) -C launcher clean

distclean: clean ## remove .venv, .tox and .cache too
	rm -rf $(VENV) .tox .cache
