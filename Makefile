# Everything a person types here. Binaries go to target/release; tests run in the dev profile (see tests/all).

.DEFAULT_GOAL := help
.PHONY: help demo test test-kubelet test-cgroup2 critest build run bench lint fuzz deps clean

bin := target/release

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## a pod from a manifest with its timeline, a debugger in it, and one of crictl's, on a daemon of its own
	tests/demo/run $(bin)

test: deps ## format, lints, all tests, a short fuzz and the demo
	tests/all

test-kubelet: deps ## what a stock kubelet makes of it; part of `make test`, as is what follows
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --test kubelet

test-cgroup2: deps ## critest and the integration tests in the user-mode kernel, on cgroup v2; ARGS='pods logs' for some of it
	tests/uml/suite $(ARGS)

critest: build ## kubelet's validation suite on cgroup v1 and v2, over SPDY and WebSocket; ARGS='--focus NRI' for some of it
	tests/critest/run $(bin) $(ARGS)

# One selection of packages everywhere, so that no crate is built twice with other features.
build: deps ## release binaries, in target/release
	cargo build --release --locked --workspace --bins

run: build ## the daemon on its default paths, in the foreground; ARGS='--log-level debug'
	$(bin)/berthd $(ARGS)

bench: build ## the benchmark; ARGS=--help says what it measures
	BERTH_BIN_DIR=$(CURDIR)/$(bin) $(bin)/berth-bench $(ARGS)

lint: deps ## format and clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

fuzz: deps ## the layer unpacker for a minute; ARGS=-max_total_time=3600 for longer
	fuzz/run unpack $(ARGS)

deps: ## the Debian packages that all of this takes, where they are missing
	@tests/install-deps

clean: ## all that was built
	cargo clean
