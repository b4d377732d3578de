# "make help" lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# "cargo test" does not rebuild the VMOD's shared object: the build before it must be
# of the same profile. Tests run in "checked", with overflows and assertions watched.
PROFILE ?= release
CARGO_FLAGS = --profile $(PROFILE) --workspace
GUESTS := $(CURDIR)/target/guests
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
BUILT = $(TARGET)/$(PROFILE)
PREFIX ?= /usr/local

# Varnish's own folder (set up by scripts/setup.sh) for every cargo command.
ENV := . scripts/env.sh &&
# What guests are made of is no part of the workspace.
GUEST_CRATES := guest-sdk/rust guest-sdk/rust/http guest-sdk/examples/script tests/guests/rust
SERVERS_IN_RUST := tests/servers/std.rs tests/servers/axum/src/main.rs
SCRIPTS := $(wildcard scripts/*.sh scripts/svm/*.sh guest-sdk/*.sh) .ci/run

.PHONY: help demo demo-check examples-more test test-conformance test-servers test-svm fuzz soak check bench install build guests test-guests setup clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: build guests ## seven tenants on http://127.0.0.1:8080 (PORT=) and an unmodified server, until Ctrl-C
	@$(ENV) LIB=$(BUILT) GUESTS_DIR=$(GUESTS) scripts/demo.sh

demo-check: build guests ## the demo on a free port, every answer checked
	@$(ENV) LIB=$(BUILT) GUESTS_DIR=$(GUESTS) scripts/demo.sh --check

test: guests test-guests ## all tests (needs /dev/kvm)
	@$(MAKE) build PROFILE=checked
	$(ENV) GUESTS_DIR=$(GUESTS) cargo test --profile checked --workspace
	for d in guest-sdk/rust guest-sdk/rust/http; do (cd $$d && CARGO_TARGET_DIR=$(TARGET)/guest-crates cargo test) || exit; done

test-servers: guests test-guests ## unmodified servers of many languages, which it installs (docs/programs.md)
	scripts/servers-setup.sh
	@$(MAKE) build PROFILE=checked
	$(ENV) GUESTS_DIR=$(GUESTS) FORKVM_RUNTIMES=all cargo test --profile checked -p forkvm-cli --test runtimes --test random
	$(ENV) GUESTS_DIR=$(GUESTS) FORKVM_RUNTIMES=all cargo test --profile checked -p vmod_kvm --test server_runtimes --test chat --test page

test-svm: setup guests test-guests ## the engine's tests on a stock kernel's KVM, in QEMU (NPT=0: shadow paging)
	$(ENV) GUESTS_DIR=$(GUESTS) scripts/svm/test.sh

test-conformance: build ## CPython's and Go's own tests, natively and in the machine (docs/conformance.md)
	@scripts/conformance-setup.sh
	FORKVM=$(BUILT)/forkvm scripts/conformance.py

fuzz: guests test-guests ## the fuzz targets, each for SECONDS_EACH=600 (TARGETS="headers responses": some of them); their corpora are replayed by make test
	GUESTS_DIR=$(GUESTS) scripts/fuzz.sh

# One test at a time, and nothing else on the machine: what the machine has left is looked at.
soak: build guests test-guests ## long runs through Varnish: requests that look for secrets (N=1000000), UPDATES=5000, KILLS=200; each TIME= seconds at most; streams, storage, fetches, synth and chains for WAY=300 seconds each
	$(ENV) GUESTS_DIR=$(GUESTS) SOAK_REQUESTS=$(or $(N),1000000) SOAK_UPDATES=$(or $(UPDATES),5000) \
	  SOAK_KILLS=$(or $(KILLS),200) SOAK_SECONDS=$(TIME) SOAK_WAY_SECONDS=$(or $(WAY),300) \
	  cargo test -q --release -p vmod_kvm --test soak --test update_soak --test soak_ways -- --nocapture --test-threads=1

check: setup ## formatting, lints, import circles, shell syntax, file names
	@if git ls-files -z | LC_ALL=C grep -zq '[^ -~]'; then \
	  echo "control characters or such in the name of a file:"; git ls-files -z | LC_ALL=C grep -z '[^ -~]' | xargs -0n1 printf '%q\n'; exit 1; fi
	cargo fmt --all --check
	rustfmt --edition 2024 --check $(SERVERS_IN_RUST)
	$(ENV) cargo clippy --workspace --all-targets -- -D warnings
	for d in $(GUEST_CRATES); do (cd $$d && cargo fmt --check && \
	  CARGO_TARGET_DIR=$(TARGET)/guest-crates cargo clippy -q --all-targets -- -D warnings) || exit; done
	scripts/circles.py src crates/forkvm/src crates/forkvm-cli/src crates/forkvm-fetch/src
	for f in $(SCRIPTS); do bash -n $$f || exit; done
	if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); fi

bench: build ## speed and memory, as a table, JSON and a page (QUICK=1, ROWS=call,memory,...)
	@$(ENV) LIB=$(BUILT) GUESTS_DIR=$(GUESTS) scripts/bench.sh

# Builds nothing ("make build && sudo make install"): root may have no Rust.
install: ## what "make build" made: VMOD (VMODDIR=), kvm.vcl and kvm_subs.vcl (VCLDIR=), command, man pages and completions (PREFIX=/usr/local); DESTDIR= honoured
	@set -e; built=$(BUILT); \
	for f in libvmod_kvm.so forkvm man1/forkvm.1 forkvm.bash vmod_kvm.3 varnish-folders; do \
	  [ -e $$built/$$f ] || { echo "$$built/$$f is missing: run \"make build\" first"; exit 1; }; done; \
	{ read -r vmoddir; read -r vcldir; read -r prefix; } <$$built/varnish-folders; \
	if [ "$(VARNISH_PREFIX)" != "$$prefix" ] && [ -n "$(VARNISH_PREFIX)" ]; then \
	  echo "this was not built for $(VARNISH_PREFIX): run \"make build VARNISH_PREFIX=$(VARNISH_PREFIX)\" first"; exit 1; fi; \
	install -vD -m 644 $$built/libvmod_kvm.so "$(DESTDIR)$(or $(VMODDIR),$$vmoddir)/libvmod_kvm.so"; \
	for f in kvm.vcl kvm_subs.vcl; do install -vD -m 644 vcl/$$f "$(DESTDIR)$(or $(VCLDIR),$$vcldir)/$$f"; done; \
	install -vD -m 755 $$built/forkvm "$(DESTDIR)$(PREFIX)/bin/forkvm"; \
	share="$(DESTDIR)$(PREFIX)/share"; \
	install -vD -m 644 -t "$$share/man/man1" $$built/man1/*.1; \
	install -vD -m 644 $$built/vmod_kvm.3 "$$share/man/man3/vmod_kvm.3"; \
	install -vD -m 644 $$built/forkvm.bash "$$share/bash-completion/completions/forkvm"; \
	install -vD -m 644 $$built/forkvm.zsh "$$share/zsh/site-functions/_forkvm"; \
	install -vD -m 644 $$built/forkvm.fish "$$share/fish/vendor_completions.d/forkvm.fish"

# What is made from Varnish's headers depends on the very Varnish they are of. Cargo
# does not see that (packaged headers are older than what was built): another ABI
# string means that it is built anew.
build: setup ## the VMOD and the command, in target/PROFILE (PROFILE=release; VARNISH_PREFIX=/usr: for an installed Varnish)
	@$(ENV) mkdir -p $(TARGET); \
	header=$$(pkg-config --variable=pkgincludedir varnishapi)/vmod_abi.h; \
	abi=$$(sed -n 's/^#define VMOD_ABI_Version "\(.*\)".*/\1/p' "$$header"); \
	[ -n "$$abi" ] || { echo "$$header has no VMOD_ABI_Version"; exit 1; }; \
	if [ "$$abi" != "$$(cat $(TARGET)/.vinyl-build 2>/dev/null)" ]; then \
	  for p in release checked dev; do \
	    cargo clean -q --profile $$p -p varnish -p varnish-sys -p vmod_kvm 2>/dev/null || true; done; \
	  echo "$$abi" >$(TARGET)/.vinyl-build; \
	fi
	@command -v cargo >/dev/null || { echo "Rust 1.95 or later is needed (rustup.rs)"; exit 1; }
	$(ENV) cargo build $(CARGO_FLAGS)
	@rm -rf $(BUILT)/man1 && $(BUILT)/forkvm man $(BUILT)/man1
	@for s in bash zsh fish; do $(BUILT)/forkvm completions $$s >$(BUILT)/forkvm.$$s; done
	@$(ENV) rst2man "$$(ls -t $(BUILT)/build/vmod_kvm-*/out/vmod_kvm.man.rst | head -n 1)" $(BUILT)/vmod_kvm.3
	@$(ENV) { for v in vmoddir vcldir; do pkg-config --variable=$$v varnishapi; done; \
	  echo "$$VARNISH_PREFIX"; } >$(BUILT)/varnish-folders

guests: setup ## the example programs, in target/guests
	@$(MAKE) -s -C guest-sdk/examples OUT=$(GUESTS)

examples-more: guests ## examples in Nim, Zig and JavaScript, and one that speaks: installs what they need, builds and tests them
	scripts/examples-setup.sh
	@$(MAKE) -s -C guest-sdk/examples more OUT=$(GUESTS) ZIG=$(abspath $(TARGET))/tools/zig/ziglang/zig
	$(ENV) GUESTS_DIR=$(GUESTS) FORKVM_EXAMPLES=all cargo test --profile checked -p forkvm-cli --test examples

test-guests: setup # programs that only the tests use
	@$(MAKE) -s -C tests/guests OUT=$(GUESTS)/test

setup: ## Varnish and build packages, once (scripts/setup.sh)
	@scripts/setup.sh

clean: ## remove what was built here (Varnish stays)
	cargo clean
