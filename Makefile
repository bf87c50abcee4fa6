# `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# Flags for `make up`, such as ARGS="--config plimsoll.toml".
ARGS ?=
# What `make build` builds: `release`, or `dist` for what is shipped, smaller and slower to build.
PROFILE ?= release
# How long `make bench-agent` measures each thing.
BENCH_SECONDS ?= 60
# How long `make chaos` kills members; other faults go on for a quarter of that.
CHAOS_SECONDS ?= 60
CARGO ?= cargo
# Sizes of `make bench`: hosts with all measurements at 1 s and for how many minutes; days of one host; hosts whose day is queried, and
# the seconds between two of their samples. BENCH_ARGS="--without-prometheus" leaves Prometheus out.
BENCH_HOSTS ?= 10
BENCH_MINUTES ?= 60
BENCH_DAYS ?= 7
BENCH_FLEET_HOSTS ?= 1000
BENCH_FLEET_INTERVAL ?= 30
BENCH_ARGS ?=

# $(call stage,heading): says what comes next, so that a failure is under its heading.
stage = printf '\n== %s\n' '$(1)'

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## Fetch libduckdb, its extensions and nats-server, once
	@command -v python3 >/dev/null || { echo 'This machine lacks python3: Debian packages python3 and python3-pip' >&2; exit 1; }
	scripts/fetch-tools

.PHONY: test-tools
test-tools: ## Fetch also what tests run, once; needs PostgreSQL
	@command -v python3 >/dev/null || { echo 'This machine lacks python3: Debian packages python3 and python3-pip' >&2; exit 1; }
	scripts/fetch-tools --tests

.PHONY: build
build: ## Build all binaries; PROFILE=dist for what is shipped; needs `make tools` once
	@cargo build --profile '$(PROFILE)' --locked --workspace --bins

.PHONY: up
up: tools build ## Build and run everything on this machine; ARGS="…" goes to `plimsoll up`
	@exec '$(TARGET_DIR)/$(PROFILE)/plimsoll' up $(ARGS)

.PHONY: test
test: test-tools ## Run every check that CI runs
	@$(call stage,Format)
	cargo fmt --all --check
	$(call stage,Scripts and deployment files)
	PLIMSOLL_TEST_PYTHON="$$(scripts/test-python)"
	export PLIMSOLL_TEST_PYTHON
	"$$PLIMSOLL_TEST_PYTHON" -B -m unittest discover --start-directory scripts
	$(call stage,Licences and sources of dependencies)
	if cargo deny --version >/dev/null 2>&1; then
		cargo deny --locked check bans licenses sources
	else
		echo 'cargo-deny is not installed and this stage is left out: cargo install --locked cargo-deny'
	fi
	$(call stage,Lints)
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(call stage,Build)
	cargo build --locked --workspace --bins
	$(call stage,Tests)
	cargo test --locked --workspace
	printf '\nAll checks passed.\n'

# Tests one by one, so that each fault has the machine, and by what is shipped.
CHAOS := cargo test --release --locked
.PHONY: chaos
chaos: test-tools ## Do a fleet harm for some minutes and count its rows; CHAOS_SECONDS=60 is how long members are killed
	@$(CHAOS) --no-run -p plimsoll-ingest --test fleet -p plimsoll-cli --test refill
	report="$$(mktemp)"
	trap 'rm -f "$$report"' EXIT
	export PLIMSOLL_CHAOS_SECONDS='$(CHAOS_SECONDS)' PLIMSOLL_CHAOS_REPORT="$$report"
	failed=0
	$(CHAOS) -p plimsoll-ingest --test fleet -- --test-threads 1 --nocapture || failed=1
	$(CHAOS) -p plimsoll-cli --test refill -- --nocapture || failed=1
	$(CHAOS) -p plimsoll-ingest --test fleet -- --ignored --exact cost::cpu_a_point_from_one_to_four_members --nocapture || failed=1
	printf '\n%-72s %9s %11s %5s %7s %5s %7s\n' fault 'rows sent' 'stored once' lost doubled DEAD orphans
	cat "$$report"
	exit "$$failed"

.PHONY: bench
bench: tools ## Measure Plimsoll beside VictoriaMetrics and Prometheus, into docs/benchmarks.md; sizes by BENCH_HOSTS and others
	@$(CARGO) build --release --locked -p plimsoll-bench -p plimsoll-ingest -p plimsoll-query-api
	'$(TARGET_DIR)/release/plimsoll-bench' compare --hosts '$(BENCH_HOSTS)' --minutes '$(BENCH_MINUTES)' --week-days '$(BENCH_DAYS)' \
		--fleet-hosts '$(BENCH_FLEET_HOSTS)' --fleet-interval '$(BENCH_FLEET_INTERVAL)' --folder '$(TARGET_DIR)/bench' \
		--write docs/benchmarks.md $(BENCH_ARGS)

.PHONY: bench-agent
bench-agent: tools ## Measure what the agent costs beside node_exporter, into docs/agent-overhead.md; BENCH_SECONDS=60 is how long
	@$(CARGO) build --profile dist --locked -p plimsoll-agent
	$(CARGO) build --profile dist --locked -p plimsoll-agent --example wire
	bench/agent/run --seconds '$(BENCH_SECONDS)' --wire-seconds '$(BENCH_SECONDS)'

# What is passed on holds no path of this machine: neither where libduckdb is, which .cargo/config.toml would link in and the agent
# has no use for, nor where sources were. In a folder of its own, since cargo would build everything anew for other flags.
PACKAGES := $(TARGET_DIR)/package
NO_PATHS := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=/plimsoll

.PHONY: agent
agent:
	@RUSTFLAGS='$(NO_PATHS)' cargo build --profile dist --locked --package plimsoll-agent --target-dir '$(PACKAGES)'

.PHONY: deb
deb: agent ## Make a Debian package of the agent, on Debian
	@deploy/package deb '$(PACKAGES)/dist/plimsoll-agent' '$(PACKAGES)'

.PHONY: archive
archive: agent ## Make the archive that deploy/install.sh installs the agent from
	@deploy/package archive '$(PACKAGES)/dist/plimsoll-agent' '$(PACKAGES)'

.PHONY: fmt
fmt: ## Format the Rust code
	@cargo fmt --all

.PHONY: docs
docs: ## Write docs/measurements.md anew from the catalog
	@cargo run --quiet --locked --package plimsoll-nats --example measurements

.PHONY: clean
clean: ## Remove what cargo built; fetched tools stay
	@cargo clean
