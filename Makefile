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

# The tests of whole shards that bring their own coordination, or are about file systems. All others
# run against whichever is named: all by `make test-coordination`, three of them by `make test`.
NOT_ON_EACH := ensemble:: slow_disks:: zookeeper:: etcd:: original_client:: network:: volumes:: hung_disk:: bench::
ON_EACH := deaths::the_sync_takes_over_from_a_host_that_died \
	deaths::a_sitter_that_died_is_not_noticed_by_clients \
	outages::losing_coordination_alone_stops_nobody

# Fails unless tests of just these names are there: one that has another name would not be run, with success.
THERE = [[ $$(cargo test --locked --package manatee --test $(1) -- --exact --list $(2) | grep -c ': test$$') == $(words $(2)) ]] || \
	{ echo 'make: not all of these are tests: $(strip $(2))' >&2; exit 1; }

# Where tests keep what they make, unless told otherwise.
TMPDIR ?= $(shell tools/place.sh)
test test-coordination test-transplant test-versions test-kills: export TMPDIR := $(TMPDIR)

# How many tests run at once that have no whole shards: they wait most of their time.
WAITING := $(shell echo $$((2 * $$(nproc))))
# How many that have: two of them leave half of two processors idle.
WHOLE := $(shell echo $$((($$(nproc) * 3 + 1) / 2)))

# Shards of `make bench-idle`.
SHARDS ?= 1000

.PHONY: help demo test test-coordination test-zfs bench-idle build lint fuzz client coverage test-kills test-transplant test-versions bench-rebuild bench-streams bench-transplant

help: ## Say what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## Run a real shard on this machine and kill its primary; ARGS=--once ends by itself, ARGS=transplant moves a server in and out
	@tools/need.sh build postgresql
	cargo build --locked --release --package manatee
	@"$(TARGET)/release/manatee" demo $(ARGS)

test: ## Check format, lints, recorded behaviour, and all tests but the longest
	@tools/need.sh build lint postgresql network zookeeper etcd patroni filesystems ssh
	@$(MAKE) --no-print-directory lint
	cargo build --locked --workspace
	cargo test --locked --workspace --exclude manatee -- --test-threads=$(WAITING)
	cargo test --locked --package manatee -- --test-threads=$(WHOLE)
	@$(call THERE,shard,$(ON_EACH))
	for coordination in zookeeper etcd; do \
		MANATEE_TEST_COORDINATION=$$coordination cargo test --locked --package manatee \
			--test shard -- --exact --test-threads=$(WHOLE) $(ON_EACH); \
	done
	"$(TARGET)/debug/manatee" sim check crates/sim/tests/vectors/*.jsonl $(VECTORS)
	@echo "make test: all of it passed"

test-coordination: ## Test whole shards against each coordination; 20 minutes
	@tools/need.sh build postgresql zookeeper etcd network
	cargo build --locked --workspace
	for coordination in sqlite zookeeper etcd; do \
		MANATEE_TEST_COORDINATION=$$coordination cargo test --locked --package manatee \
			--test shard -- $(addprefix --skip ,$(NOT_ON_EACH)); \
	done

bench-idle: ## Measure what idle shards cost a ZooKeeper ensemble; SHARDS=100 for fewer
	@tools/need.sh build zookeeper
	cargo bench --locked --package adapters --bench idle -- $(SHARDS)

# Where OpenZFS is: each test program runs there, and cargo waits for it.
ON_ZFS = cargo test --locked --config 'target."cfg(all())".runner = ["$(CURDIR)/tools/zfs-vm/run.sh"]'

test-zfs: ## Check storage and a shard on the current OpenZFS, in an emulated machine where this one has none; 20 minutes
	@tools/need.sh build zfs-vm
	$(ON_ZFS) --package adapters --test storage_snapshots --test storage_volumes -- zfs
	$(ON_ZFS) --package manatee --test shard -- volumes::a_shard_on_zfs
	@echo "make test-zfs: all of it passed"

# How often either end of a seeding is killed, and the size of the database that is timed.
KILLS ?= 50
ON_KILLS := volumes::a_seeding_outlives_both_of_its_ends
MIB ?= 2048

# Sizes of the databases that are moved and timed, in GB.
SIZES ?= 0.2 1 4

# Shards that `make fuzz` lets faults befall.
SEEDS ?= 10000

fuzz: ## Let faults befall many modelled shards; SEEDS=100000 for more
	@tools/need.sh build
	cargo build --locked --release --package manatee
	"$(TARGET)/release/manatee" sim fuzz --seeds $(SEEDS)

# A checkout of the original's client library (node-manatee), with `npm install` done in it. No package
# registry has it.
NODE_CLIENT ?=
CLIENT := original_client::the_original_client_follows_takeovers

client: ## Let the original's client read a shard of ours: make client NODE_CLIENT=DIRECTORY
	@[[ -n "$(NODE_CLIENT)" ]] || { echo 'make client: give NODE_CLIENT=DIRECTORY, a checkout of node-manatee with `npm install` done' >&2; exit 2; }
	@command -v node >/dev/null || { echo 'make client: there is no node in PATH' >&2; exit 2; }
	@tools/need.sh build postgresql zookeeper
	@$(call THERE,shard,$(CLIENT))
	MANATEE_NODE_CLIENT="$(abspath $(NODE_CLIENT))" cargo test --locked --package manatee --test shard -- --exact $(CLIENT) --ignored --nocapture

test-kills: ## Kill either end of a seeding again and again; KILLS=50
	@tools/need.sh build postgresql filesystems
	@$(call THERE,shard,$(ON_KILLS))
	MANATEE_TEST_KILLS=$(KILLS) cargo test --locked --package manatee --test shard -- --exact $(ON_KILLS) --nocapture

test-transplant: ## Move databases in every way there is, and undo it from each step; half an hour
	@tools/need.sh build postgresql zookeeper etcd patroni filesystems ssh systemd
	cargo test --locked --package manatee --test transplant -- --ignored --nocapture --test-threads=$(WHOLE) --skip bench:: --skip v1_peer::process

# The versions of PostgreSQL that Debian has beside this one's, and what is tested of each.
VERSIONS ?= 13 17 18
ON_VERSION = POSTGRESQL=$$version cargo test --locked --config 'target."cfg(all())".runner = ["$(CURDIR)/tools/debian-root/run.sh"]'

test-versions: ## Test with other versions of PostgreSQL, of other Debians; VERSIONS="13 17 18"
	@tools/need.sh build debian-root
	cargo build --locked --package manatee
	for version in $(VERSIONS); do \
		$(ON_VERSION) --package adapters --test postgres --test postgres_rewind; \
		$(ON_VERSION) --package manatee --test shard --test transplant -- --test-threads=$(WHOLE) \
			--include-ignored --skip _from_every_ deaths:: rebuild:: postgres:: pair::; \
	done

bench-transplant: ## Time the cut-over of a transplant beside a runbook's, by directories and on btrfs; SIZES="0.2 1 4"
	@tools/need.sh build postgresql filesystems
	MANATEE_BENCH_SIZES="$(SIZES)" cargo test --locked --release --package manatee --test transplant -- --exact bench::cut_over --ignored --nocapture

bench-rebuild: ## Time how a deposed peer comes back, and how fast snapshots travel, on btrfs; MIB=2048
	@tools/need.sh build postgresql filesystems
	MANATEE_BENCH_MIB=$(MIB) cargo test --locked --release --package manatee --test shard -- --exact bench::rebuild --ignored --nocapture

bench-streams: ## Time snapshots that travel beside btrfs send | btrfs receive, without a database; MIB=512
	@tools/need.sh build filesystems
	MANATEE_BENCH_MIB=$(MIB) cargo test --locked --release --package manatee --test shard -- --exact bench::streams::without_a_database --ignored --nocapture

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
