# Short names for everything; `make` alone lists them. Everything goes into this directory (.venv, .cache, build); nothing is installed outside it.
PYTHON ?= python3
IMAGE  ?= localhost/poiesis:dev
ARGS   ?=

VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.runtime
DEV    := $(VENV)/.development
ZIG    := $(CURDIR)/.cache/zig/ziglang/zig
ZIG_ENV := ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/.cache/zig-cache ZIG_LOCAL_CACHE_DIR=$(CURDIR)/.cache/zig-cache
SUMS   := launcher/shipped.sha256
CLUSTER := ../shared/cluster
CLIENT_DIR := .cache/clients
CLIENTS ?= pydantic-tes cwl-tes snakemake snakemake7 toil generated schemathesis
TEST_RUNNER ?= https://github.com/elixir-cloud-aai/openapi-test-runner
TEST_RUNNER_COMMIT := 552ff3c
SPROCKET := 0.33.0
PROMETHEUS := v0.313.5
JAEGER := v1.76.0
KEYCLOAK := 26.7.3
KEYCLOAK_SHA256 := 77657f30b7e90d70f727712ce1c967f430fd6a5e9f458d32d8c6df0635345f47

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: keycloak monitoring trace-picture help venv launcher launcher-build launcher-check demo up test large-log emulators browser browser-large-log screenshots clients clients-test clients-lock sprocket mutations wheel-smoke lint format e2e kueue-e2e netpol-e2e nodes-e2e doctor-e2e bench chaos image lock docs reference docs-test clean distclean image-archive image-check upgrade-e2e old-image

help: ## this list
	@echo "make TARGET [PYTHON=python3] [ARGS='more arguments for the command']"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(DEV) ## .venv with everything for development: the exact versions of requirements/dev.txt, and this package, editable

# In two layers of the same pins: what the service needs, then the tools. uv is several times faster than pip; where it is not available or
# cannot reach the index (it does not read pip's settings), pip does the same.
define install
@$(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || { echo "uv failed; trying pip"; $(BIN)/python -m pip install --quiet $(1); }
endef

$(RUN): requirements/uv.txt requirements/lock.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Poiesis needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1 || true). Use another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing the packages of requirements/lock.txt into $(VENV)"
	-@$(BIN)/python -m pip install --quiet --no-compile --only-binary :all: --no-deps --require-hashes -r requirements/uv.txt
	$(call install,--no-deps --require-hashes -r requirements/lock.txt)
	$(call install,--no-build-isolation --no-deps --editable .)
	@touch $@

$(DEV): $(RUN) requirements/dev.txt
	@echo "installing the packages of requirements/dev.txt into $(VENV)"
	$(call install,--no-deps --require-hashes -r requirements/dev.txt)
	@touch $@

# The two launchers are in git, built by one pinned compiler, so that no compiler is needed (docs/adr/0010-launcher-build.md).
launcher: ## poiesis/bin/launcher-{amd64,arm64}, built again when launcher/ has changed
	@sha256sum --status --check $(SUMS) || $(MAKE) launcher-build

launcher-build: $(ZIG)
	$(ZIG_ENV) $(MAKE) -C launcher shipped ZIG=$(ZIG) SHIPPED=$(CURDIR)/poiesis/bin
	sha256sum launcher/Makefile launcher/*.[ch] requirements/launcher.txt poiesis/bin/launcher-* > $(SUMS)

launcher-check: $(ZIG) ## build both launchers from scratch and compare them with those in git, byte for byte
	rm -rf build/launcher launcher/build
	$(ZIG_ENV) $(MAKE) -C launcher shipped ZIG=$(ZIG) SHIPPED=$(CURDIR)/build/launcher
	for arch in amd64 arm64; do cmp build/launcher/launcher-$$arch poiesis/bin/launcher-$$arch || exit 1; done

$(ZIG): requirements/launcher.txt | $(RUN)
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target .cache/zig -r requirements/launcher.txt
	@touch $@

demo: $(RUN) launcher ## start the whole service here, post a real task to it, show the result
	$(BIN)/python -m poiesis demo $(ARGS)

up: $(RUN) launcher ## start the whole service here and keep it running
	$(BIN)/python -m poiesis up $(ARGS)

test: venv launcher ## every test that needs no cluster; servers are started by the tests themselves
	$(BIN)/pytest -n auto --dist loadgroup -m "not e2e and not chaos and not clients and not browser and not docs" $(ARGS)

large-log: venv launcher ## a log of a gigabyte, followed while it is written, with exact ranges and flat memory
	POIESIS_TEST_LOG_BYTES=999999999 $(BIN)/pytest -s tests/integration/embedded/test_logs.py -k large $(ARGS)

emulators: ## what tests need and no Python package has: OpenID providers, Azure's and Google Cloud's storage, axe-core; needs npm and go
	@command -v npm >/dev/null && command -v go >/dev/null || { echo "emulators: needs npm and go" >&2; exit 1; }
	mkdir -p .cache/emulators
	npm install --silent --no-audit --no-fund --prefix .cache/emulators azurite@3.37.0 oidc-provider@9.13.3 axe-core@4.14.1
	GOBIN=$(CURDIR)/.cache/emulators/bin go install github.com/fsouza/fake-gcs-server@v1.56.1
	GOBIN=$(CURDIR)/.cache/emulators/zitadel go install github.com/zitadel/oidc/v3/example/server@v3.45.0
	cp .cache/emulators/zitadel/server .cache/emulators/bin/zitadel-oidc-server

# The test starts it once, which builds the server that later starts use; two first starts at the same time would be in each other's way.
KEYCLOAK_DIR := .cache/emulators/keycloak
keycloak: venv $(KEYCLOAK_DIR)/.installed ## Keycloak, for the tests of logins by it; 180 MB; needs mvn and Java 17
	$(BIN)/pytest tests/integration/test_servers.py -k keycloak $(ARGS)

$(KEYCLOAK_DIR)/.installed:
	@command -v mvn >/dev/null && command -v java >/dev/null || { echo "keycloak: needs mvn and java" >&2; exit 1; }
	rm -rf $(KEYCLOAK_DIR) && mkdir -p $(KEYCLOAK_DIR)/download
	cd $(KEYCLOAK_DIR)/download && mvn -B -q -Dmaven.repo.local=$$PWD/m2 org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy \
	  -Dartifact=org.keycloak:keycloak-quarkus-dist:$(KEYCLOAK):tar.gz -DoutputDirectory=$$PWD
	echo "$(KEYCLOAK_SHA256)  $(KEYCLOAK_DIR)/download/keycloak-quarkus-dist-$(KEYCLOAK).tar.gz" | sha256sum --check --quiet
	tar -xzf $(KEYCLOAK_DIR)/download/keycloak-quarkus-dist-$(KEYCLOAK).tar.gz --strip-components 1 -C $(KEYCLOAK_DIR)
	rm -rf $(KEYCLOAK_DIR)/download
	@touch $@

# `go install` refuses a module whose go.mod excludes versions, so each is built from an empty module that requires it.
MONITORING := .cache/monitoring
monitoring: ## promtool, Prometheus and Jaeger, for the tests of alerts and traces; needs go, and an hour of one core
	@command -v go >/dev/null || { echo "monitoring: needs go" >&2; exit 1; }
	mkdir -p $(MONITORING)/src
	cd $(MONITORING)/src && { test -f go.mod || go mod init monitoring; } && \
	  go get github.com/prometheus/prometheus/cmd/promtool@$(PROMETHEUS) github.com/prometheus/prometheus/cmd/prometheus@$(PROMETHEUS)
	for program in promtool prometheus; do (cd $(MONITORING)/src && \
	  go build -p 1 -tags remove_all_sd -trimpath -ldflags '-s -w' -o ../$$program github.com/prometheus/prometheus/cmd/$$program) || exit 1; done
	mkdir -p $(MONITORING)/jaeger-src
	cd $(MONITORING)/jaeger-src && { test -f go.mod || go mod init monitoring; } && \
	  go get github.com/jaegertracing/jaeger/cmd/all-in-one@$(JAEGER) && \
	  go build -p 1 -trimpath -ldflags '-s -w' -o ../jaeger github.com/jaegertracing/jaeger/cmd/all-in-one

trace-picture: venv launcher ## docs/images/trace.svg again, from the spans of a real task
	POIESIS_TRACE_PICTURE=docs/images/trace.svg $(BIN)/pytest tests/integration/embedded/test_traces.py $(ARGS)

clients: $(CLIENTS:%=$(CLIENT_DIR)/%/.installed) ## TES clients for tests, each in an environment of its own (CLIENTS='toil snakemake' for some)

clients-test: venv launcher ## a real workflow by each client that is installed, and schemathesis
	$(BIN)/pytest tests/clients -n 2 $(ARGS)

# rdflib-jsonld, which cwl-tes needs, can only be built with an old setuptools, so before the one that cwl-tes runs with is installed; all others
# come as wheels or bring their own build system.
$(CLIENT_DIR)/%/.installed: requirements/clients/%.txt | $(RUN)
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python 'setuptools<58' wheel
	@old=$$(grep '^rdflib-jsonld==' $<) && $(BIN)/uv pip install --quiet --python $(@D)/bin/python --no-deps --no-build-isolation "$$old" || test -z "$$old"
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --no-deps -r $< || \
	  $(@D)/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

$(CLIENT_DIR)/openapi-test-runner/.installed: | $(RUN)
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(@D)
	git clone --quiet $(TEST_RUNNER) $(@D)/source && git -C $(@D)/source checkout --quiet $(TEST_RUNNER_COMMIT)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python $(@D)/source
	@touch $@

sprocket: ## Sprocket with its TES backend, for clients-test: cargo builds it, about an hour of one core
	CARGO_PROFILE_DEV_DEBUG=0 nice cargo install sprocket --version $(SPROCKET) --locked --debug --jobs 1 \
	  --root $(CLIENT_DIR)/sprocket --target-dir $(CLIENT_DIR)/sprocket-target
	@touch $(CLIENT_DIR)/sprocket/.installed

browser: venv launcher ## the dashboard in a real browser: needs chromium and chromedriver, and make emulators
	$(BIN)/pytest tests/browser $(ARGS)

browser-large-log: venv launcher ## a log of a gigabyte in a real browser: windows of it, a search through it, and the memory of the page
	POIESIS_TEST_LOG_BYTES=999999980 $(BIN)/pytest -s tests/browser/test_logs.py -k large $(ARGS)

screenshots: venv launcher ## docs/screenshots, by the tests that show each page
	POIESIS_SCREENSHOTS=$(CURDIR)/docs/screenshots $(BIN)/pytest tests/browser -k "light_dark_and_narrow" $(ARGS)

mutations: venv ## 10,000 mutated documents and 10,000 mutated queries; POIESIS_SEED for others
	POIESIS_MUTATIONS=10000 $(BIN)/pytest tests/integration/api/test_mutations.py tests/integration/api/test_mutated_extensions.py tests/integration/api/test_mutated_dashboard.py $(ARGS)

wheel-smoke: venv launcher ## sdist and wheel, installed into an empty environment, as root and as an ordinary user: `poiesis up` runs a task
	$(BIN)/pytest tests/integration/test_wheel.py $(ARGS)

lint: venv ## ruff, mypy, import direction and circles; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv ## fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

e2e: venv ## tests on a real cluster: KUBECONFIG, with IMAGE on its node
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest -n 2 tests/integration/kubernetes tests/e2e -m "e2e and not chaos and not addon and not upgrade" --timeout 600 $(ARGS)

kueue-e2e: venv ## tests on a real cluster that has Kueue
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e/test_kueue.py --timeout 600 $(ARGS)

netpol-e2e: venv ## tests on a real cluster that enforces NetworkPolicy
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e/test_netpol.py --timeout 600 $(ARGS)

# The commit that test_upgrade.py upgrades from, unless POIESIS_TEST_OLD_COMMIT is another.
OLD_COMMIT ?= 6eac920
OLD_IMAGE ?= $(IMAGE)-old
old-image: ## OLD_IMAGE from OLD_COMMIT, for upgrade-e2e
	rm -rf build/old && mkdir -p build/old && git archive $(OLD_COMMIT) | tar -x -C build/old
	$(MAKE) -C build/old image IMAGE=$(OLD_IMAGE) CLUSTER=$(abspath $(CLUSTER))

upgrade-e2e: venv ## on a real cluster: install OLD_COMMIT with OLD_IMAGE, upgrade to IMAGE and roll back, with tasks in flight
	POIESIS_TEST_IMAGE=$(IMAGE) POIESIS_TEST_OLD_IMAGE=$(OLD_IMAGE) POIESIS_TEST_OLD_COMMIT=$(OLD_COMMIT) \
	  $(BIN)/pytest tests/e2e/test_upgrade.py -s --timeout 1200 $(ARGS)

nodes-e2e: venv ## tests on a real cluster that has kwok: nodes that are lost and drained
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e/test_nodes.py --timeout 600 $(ARGS)

doctor-e2e: venv ## on a real cluster: poiesis doctor names some twenty broken set-ups, and their repair works
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e/test_doctor.py --timeout 600 $(ARGS)

chaos: venv ## kill processes at every step on a real cluster, and count what was lost
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/e2e -m chaos -s --timeout 1200 $(ARGS)

bench: venv ## the benchmarks of bench/
	POIESIS_TEST_IMAGE=$(IMAGE) $(BIN)/python -m bench $(ARGS)

# One timestamp for all files, and by default the same for every commit, so that layers of earlier builds can be used again.
SOURCE_DATE_EPOCH ?= 1767225600
BUILD_ARGS = --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' poiesis/__init__.py) \
	--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null) $(if $(BASE),--build-arg BASE=$(BASE)) $(ARGS) -f docker/Dockerfile .
image: launcher ## IMAGE from docker/Dockerfile, with the first builder found (ARGS=--no-cache; BASE=python@sha256:… for another base)
	@if [ -x $(CLUSTER)/build ]; then set -x; $(CLUSTER)/build -t $(IMAGE) --timestamp $(SOURCE_DATE_EPOCH) $(BUILD_ARGS); \
	elif command -v docker >/dev/null; then set -x; SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) docker build -t $(IMAGE) $(BUILD_ARGS); \
	elif command -v podman >/dev/null; then set -x; podman build -t $(IMAGE) --timestamp $(SOURCE_DATE_EPOCH) $(BUILD_ARGS); \
	elif command -v buildah >/dev/null; then set -x; buildah build -t $(IMAGE) --timestamp $(SOURCE_DATE_EPOCH) $(BUILD_ARGS); \
	else echo "image: found none of docker, podman, buildah" >&2; exit 1; fi

OUT ?= build/image.tar
image-archive: image ## IMAGE as the archive OUT
	@mkdir -p $(dir $(OUT)) && rm -f $(OUT)
	@if [ -x $(CLUSTER)/build ]; then BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay STORAGE_OPTS= buildah push --quiet $(IMAGE) docker-archive:$(OUT):$(IMAGE); \
	elif command -v docker >/dev/null; then docker save -o $(OUT) $(IMAGE); \
	elif command -v podman >/dev/null; then podman save -q -o $(OUT) $(IMAGE); \
	else buildah push --quiet $(IMAGE) docker-archive:$(OUT):$(IMAGE); fi

image-check: venv ## build the image twice from scratch and compare the digests of the layers
	$(MAKE) image-archive IMAGE=$(IMAGE)-1 ARGS=--no-cache OUT=build/image-1.tar
	$(MAKE) image-archive IMAGE=$(IMAGE)-2 ARGS=--no-cache OUT=build/image-2.tar
	$(BIN)/python -m release compare build/image-1.tar build/image-2.tar

# The pins are kept until `make lock ARGS=--upgrade`. One resolution for every platform from Python 3.11 on; no index URL is written.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' $(ARGS)
lock: venv ## requirements/*.txt again from setup.cfg (ARGS=--upgrade for newer versions)
	$(COMPILE) setup.cfg requirements/build.in --extra flower --extra sftp --extra tracing -o requirements/lock.txt
	$(COMPILE) setup.cfg requirements/build.in --all-extras -c requirements/lock.txt -o requirements/dev.txt
	$(COMPILE) requirements/uv.in -c requirements/dev.txt -o requirements/uv.txt
	$(COMPILE) requirements/launcher.in -o requirements/launcher.txt
	@! grep -nE '://|^--|file:|$(CURDIR)' requirements/*.txt || { echo "lock: a lock file contains an address or a path" >&2; exit 1; }

# toil-batch-system-tes 2.0.0 names an older Toil, whose job store in AWS needs SimpleDB; it works with the newer one.
clients-lock: venv ## requirements/clients/*.txt again from the *.in beside them
	for name in $(CLIENTS); do \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make clients-lock' \
	    $$(test ! -f requirements/clients/$$name.override || echo --override requirements/clients/$$name.override) \
	    requirements/clients/$$name.in -o requirements/clients/$$name.txt || exit 1; \
	done

docs: venv ## the documentation as HTML in docs/_build
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build $(ARGS)
	@echo "open docs/_build/index.html"

docs-test: venv launcher ## the commands of the tutorials and how-tos, as printed
	$(BIN)/pytest tests/docs -n 2 --dist loadgroup $(ARGS)

reference: venv ## the generated pages of docs again (settings, command line, chart, errors, APIs, metrics), and the Grafana dashboards
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_chart_values.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_metrics.py
	$(BIN)/python docs/make_dashboards.py

clean: ## remove what was built and measured; .venv and .cache stay
	rm -rf build dist docs/_build htmlcov coverage.xml .coverage .coverage.* *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find poiesis tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@[ ! -f launcher/Makefile ] || $(MAKE) -C launcher clean

distclean: clean ## remove .venv, .tox and .cache too
	rm -rf $(VENV) .tox .cache
