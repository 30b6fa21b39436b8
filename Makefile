# Every target is one line that also works without make; README.md lists them.
PYTHON ?= python3
FIRST := $(PYTHON) controlplane/embedded/first_run.py
TESTS ?=
.DEFAULT_GOAL := help
# The programs start a dozen processes: what one has compiled the others read.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help setup demo up down reset status doctor test test-ci test-real check fmt lock migrations openapi messages bench screens docs lab-kubernetes lab-vsphere vllm

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

setup: ## check this machine, make .venv, install what the product needs
	@$(FIRST) setup

demo: ## set up, start everything, walk the golden path, stay (EXIT=1: stop, end with the walk's status; LAB=kubernetes, vsphere or all; VLLM=1)
	@$(FIRST) demo

up: ## start everything and stay until Ctrl-C; data is kept
	@$(FIRST) up

down: ## stop everything that runs, from any terminal
	@$(FIRST) down

reset: ## stop everything and delete all its data (YES=1: ask nothing)
	@$(FIRST) reset

status: ## show what runs
	@$(FIRST) status

doctor: ## check the machine and everything that runs
	@$(FIRST) doctor

test: ## the default tests, from a fresh checkout (TESTS=path picks some); `make check` runs those of tests/architecture
	@$(FIRST) --dev run pytest -n 2 --dist worksteal --ignore=tests/architecture -m "not real and not shared and not slow and not crash and not browser" $(TESTS)

test-ci: ## 100 sampled crash points, slow tests, browser tests, tests that need ../shared
	@$(FIRST) --dev run pytest -n 2 --dist worksteal -m "(crash or slow or shared or browser) and not real and not soak" $(TESTS)

test-real: ## tests against real servers (kube-apiserver, vcsim, vllm): builds what is missing, skips with the reason
	@TENANTRY_LAB_BUILD=1 TENANTRY_LAB_NODE=$(NODE) $(FIRST) --dev run pytest -n 3 --dist loadgroup -v -m "real and not soak" $(TESTS)

check: ## lint, format, types, imports, migrations, OpenAPI drift, architecture tests
	@$(FIRST) --dev run python -m scripts.check

fmt: ## format and mend what can be mended
	@$(FIRST) --dev run ruff format . && .venv/bin/ruff check --fix .

lock: ## resolve dependencies anew into the two hashed lock files (needs uv)
	@$(PYTHON) -m scripts.lock

migrations: ## write missing migrations; name each one
	@$(FIRST) --dev run python -m controlplane makemigrations --name $(or $(NAME),$(error say what it does: make migrations NAME=add_colour))

openapi: ## write docs/openapi.yaml from the code
	@$(FIRST) --dev run python -m controlplane spectacular --file docs/openapi.yaml --validate --fail-on-warn

messages: ## collect every text for translators into frontend/locale (needs gettext's xgettext)
	@$(FIRST) --dev run python -m controlplane makemessages -l en --no-location --no-wrap --no-obsolete -i .venv -i .state -i "tests/*" -i "docs/*" -i "scripts/*"

bench: ## measure claims, lists, passes and sweeps, and print the figures
	@$(FIRST) --dev run python -m tests.benchmarks

screens: ## a picture of every page of the demo, light and dark, wide and phone (OUT=folder, URL=a running demo)
	@$(FIRST) --dev run python -m scripts.screens $(if $(OUT),--out $(OUT)) $(if $(URL),--url $(URL))

docs: ## where the documentation is, and write its generated part
	@$(FIRST) --dev run python -m controlplane spectacular --file docs/openapi.yaml && ls docs

lab-kubernetes: ## a real Kubernetes control plane with simulated nodes: build, start, stay up (NAME=lab; NODE=real: and a kubelet; DOWN=1 stops)
	@$(FIRST) --dev run python -m controlplane.labs.kubernetes $(if $(DOWN),down,up) --name $(or $(NAME),lab) $(if $(NODE),--node $(NODE))

lab-vsphere: ## a vCenter simulator whose hosts have GPUs: build, start, stay up (NAME=lab; DOWN=1 stops)
	@$(FIRST) --dev run python -m controlplane.labs.vsphere $(if $(DOWN),down,up --guests) --name $(or $(NAME),lab)

vllm: ## install a real vLLM for this machine's CPU and make a small model (6 GB, once; then `make demo VLLM=1`)
	@$(FIRST) run python -m controlplane.labs.vllm build
