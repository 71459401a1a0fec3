# What there is to do here; `make help` lists it. demo and test first see to what the machine lacks
# (tools/need.sh).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# rustup puts cargo here, whether or not this shell has read its profile again.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Where cargo builds to, as cargo itself has it.
TARGET := $(or $(CARGO_TARGET_DIR),target)

# Arguments of the demonstration: make demo ARGS="--once --peers 4".
ARGS ?=

# Recorded behaviour that is checked beside what lies in this repository.
VECTORS ?= $(wildcard ../shared/conformance/*.jsonl)

.PHONY: help demo test build lint fuzz coverage

help: ## Say what there is to do
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## Run a real shard on this machine and kill its primary; ARGS=--once ends by itself
	@tools/need.sh build postgresql
	cargo build --locked --release --package manatee
	@"$(TARGET)/release/manatee" demo $(ARGS)

test: ## Check everything: format, lints, tests, recorded behaviour
	@tools/need.sh build lint postgresql network zookeeper filesystems
	@$(MAKE) --no-print-directory lint
	cargo build --locked --workspace
	cargo test --locked --workspace
	"$(TARGET)/debug/manatee" sim check crates/sim/tests/vectors/*.jsonl $(VECTORS)
	@echo "make test: all of it passed"

# Shards that `make fuzz` lets faults befall.
SEEDS ?= 10000

fuzz: ## Let faults befall many modelled shards; SEEDS=100000 for more
	@tools/need.sh build
	cargo build --locked --release --package manatee
	"$(TARGET)/release/manatee" sim fuzz --seeds $(SEEDS)

coverage: ## Say how much of the rules the tests of cluster and sim run; fails below 95 % of the lines
	@tools/need.sh build coverage
	@tools/coverage.sh 95

build: ## Build the binary, optimised
	@tools/need.sh build
	cargo build --locked --release --package manatee

lint: ## Check the format and the lints alone
	@tools/need.sh build lint
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings
