# banger: build, try, test. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PREFIX  ?= /usr/local
DESTDIR ?=
# How many smoke scenarios at a time; the harness chooses when empty.
JOBS    ?=
# Where smoke and bench keep the kernel and the image between runs. Empty: pull them every time.
CACHE   ?= /var/tmp/banger-smoke-cache
TARGET  := x86_64-unknown-linux-gnu
OUT     := build/bin
LOGS    := target/test
HOST_PROGRAMS := banger bangerd bangerd-root banger-emu banger-smoke

# Under sudo, Rust is where the caller has it, and the build belongs to the caller.
CALLER  := $(if $(filter-out root,$(SUDO_USER)),$(SUDO_USER))
HOME_OF := $(if $(CALLER),$(shell getent passwd $(CALLER) | cut -d: -f6),$(HOME))
export PATH := $(HOME_OF)/.cargo/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin
AS_CALLER := $(if $(CALLER),sudo -u $(CALLER) env HOME="$(HOME_OF)" PATH="$(PATH)")
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
CARGO   := $(AS_CALLER) cargo

# program:package, for all that is run here; a package is installed only where its program is missing.
PROGRAMS := qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap mke2fs:e2fsprogs newuidmap:uidmap nft:nftables \
            ip:iproute2 ssh:openssh-client modprobe:kmod cc:gcc pkg-config:pkg-config setpriv:util-linux curl:curl
TEST_PROGRAMS := skopeo:skopeo umoci:umoci busybox:busybox-static
BENCH_PROGRAMS := dnsmasq:dnsmasq-base dnsperf:dnsperf
FILES    := /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring \
            /usr/include/linux/limits.h:linux-libc-dev /usr/include/stdlib.h:libc6-dev \
            /etc/ssl/certs/ca-certificates.crt:ca-certificates

##@ Build
.PHONY: build
build: deps ## Build everything into build/bin
	@mkdir -p $(OUT)
	$(if $(CALLER),@chown -R $(CALLER) build)
	$(CARGO) build --release --locked -p bins -p smoke --bins
	@for program in $(HOST_PROGRAMS); do install -m 755 target/release/$$program $(OUT)/; done
	@# Static, so that it runs in any image. Only its own crate is told so: what it is built of is built already.
	$(CARGO) rustc --release --locked -p guest --bin banger-agent -- -C target-feature=+crt-static
	@# Stripped: it is in every initramfs.
	@install -s -m 755 target/release/banger-agent $(OUT)/
	@! readelf --program-headers --wide $(OUT)/banger-agent | grep INTERP || { echo "banger-agent is not static" >&2; exit 1; }

.PHONY: deps
deps: ## Install what is missing: Debian packages, and Rust
	@missing=""; \
	for pair in $(PROGRAMS); do command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	for pair in $(FILES); do [ -e $${pair%%:*} ] || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then $(MAKE) install-packages PACKAGES="$$missing"; fi
	@if ! command -v cargo >/dev/null; then \
		echo "Rust is missing: running its official installer"; \
		$(AS_CALLER) sh -c "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy -c rustfmt"; \
	fi

.PHONY: install-packages
install-packages:
	@echo "installing:$(PACKAGES)"
	@command -v apt-get >/dev/null || { echo "this is no Debian or Ubuntu: please install the equivalents of$(PACKAGES)" >&2; exit 1; }
	@log=$$(mktemp); $(AS_ROOT) sh -c 'export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -q -y --no-install-recommends $(PACKAGES)' >$$log 2>&1 \
		|| { tail -40 $$log >&2; rm -f $$log; exit 1; }; rm -f $$log

# The tools that results are compared with.
.PHONY: test-deps bench-deps
test-deps: COMPARED := $(TEST_PROGRAMS)
bench-deps: COMPARED := $(TEST_PROGRAMS) $(BENCH_PROGRAMS)
test-deps bench-deps:
	@missing=""; for pair in $(COMPARED); do command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then $(MAKE) install-packages PACKAGES="$$missing"; fi
	@$(MAKE) $(OUT)/docker-registry

# Only unpacked: where Debian's package is installed, it starts a server on port 5000, now and at every boot.
$(OUT)/docker-registry:
	@echo "fetching: docker-registry"
	@mkdir -p $(OUT); scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cd "$$scratch" && \
		{ apt-get download -q docker-registry || { $(AS_ROOT) apt-get update -q && apt-get download -q docker-registry; }; } >log 2>&1 \
		|| { cat log >&2; exit 1; }; \
		dpkg-deb -x docker-registry_*.deb . && install -m 755 usr/bin/docker-registry $(CURDIR)/$(OUT)/

##@ Try
.PHONY: sandbox
sandbox: build ## Open a shell in a real microVM; changes nothing on this machine's network (ARGS: more for `banger vm run`)
	@$(AS_ROOT) $(OUT)/banger-smoke sandbox $(if $(ARGS),-- $(ARGS))

##@ Test
.PHONY: test
test: build test-deps ## Run every test: unit, integration, then real guests; ends with one line of counts
	@mkdir -p $(LOGS); status=0; rm -f $(LOGS)/*.log; touch $(LOGS)/cargo.log $(LOGS)/smoke.log; \
	$(if $(CALLER),chown -R $(CALLER) $(LOGS);) \
	if $(CARGO) nextest --version >/dev/null 2>&1; then runner="nextest run"; else runner="test --no-fail-fast"; fi; \
	BANGER_BIN_DIR="$(CURDIR)/$(OUT)" $(CARGO) $$runner --release --locked --workspace 2>&1 | tee $(LOGS)/cargo.log || status=1; \
	$(AS_ROOT) $(OUT)/banger-smoke run $(SMOKE_FLAGS) 2>&1 | tee $(LOGS)/smoke.log || status=1; \
	$(OUT)/banger-smoke tally $(LOGS)/cargo.log $(LOGS)/smoke.log || status=1; \
	exit $$status

SMOKE_FLAGS = $(if $(JOBS),--jobs $(JOBS)) $(if $(CACHE),--cache $(CACHE))

.PHONY: smoke
smoke: build test-deps ## Run the smoke scenarios with real guests (JOBS: how many at a time)
	@$(AS_ROOT) $(OUT)/banger-smoke run $(SMOKE_FLAGS)

.PHONY: smoke-list
smoke-list: ## List the smoke scenarios: name, class, one line
	@sed -n '/^[^#]/p' smoke/scenarios.txt

.PHONY: smoke-one
ifeq ($(strip $(SCENARIO)),)
smoke-one: ## Run some scenarios: SCENARIO=name,name
	@echo "usage: make smoke-one SCENARIO=name[,name…]; make smoke-list shows them" >&2; exit 2
else
smoke-one: build test-deps
	@$(AS_ROOT) $(OUT)/banger-smoke run $(SMOKE_FLAGS) --only '$(SCENARIO)'
endif

.PHONY: bench
bench: build bench-deps ## Measure speed and size against their goals; also writes target/bench/report.json
	@mkdir -p target/bench
	@$(AS_ROOT) $(OUT)/banger-smoke bench $(if $(CACHE),--cache $(CACHE)) --report target/bench/report.json $(if $(ONLY),--only $(ONLY))

# Everything instrumented, in a target directory of its own. What is killed on purpose, and the agent in the guests, leaves no
# counters; the agent's own tests do.
COVERAGE := $(CURDIR)/target/coverage
.PHONY: coverage
coverage: deps ## Run every test with counters, and print how much of each file they reach
	$(AS_CALLER) rustup component add llvm-tools
	@rm -rf $(COVERAGE)/counters $(COVERAGE)/bin && mkdir -p $(COVERAGE)/bin $(LOGS) && mkdir -m 1777 $(COVERAGE)/counters
	$(if $(CALLER),@chown -R $(CALLER) $(COVERAGE))
	@# A counter file for each program and process, merged as they end; the smoke user writes there too.
	export LLVM_PROFILE_FILE='$(COVERAGE)/counters/%8m.profraw' CARGO_TARGET_DIR=$(COVERAGE) RUSTFLAGS="-C instrument-coverage"; \
	with="env LLVM_PROFILE_FILE=$$LLVM_PROFILE_FILE CARGO_TARGET_DIR=$$CARGO_TARGET_DIR"; \
	$(AS_CALLER) $$with RUSTFLAGS="$$RUSTFLAGS" cargo build --release --locked -p bins -p smoke --bins; \
	$(AS_CALLER) $$with RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked -p guest --bins --target $(TARGET); \
	for program in $(HOST_PROGRAMS); do install -m 755 $(COVERAGE)/release/$$program $(COVERAGE)/bin/; done; \
	install -m 755 $(COVERAGE)/$(TARGET)/release/banger-agent $(COVERAGE)/bin/; \
	status=0; $(AS_CALLER) $$with RUSTFLAGS="$$RUSTFLAGS" BANGER_BIN_DIR=$(COVERAGE)/bin cargo test --no-fail-fast --release --locked --workspace || status=1; \
	chmod -R a+rwX $(COVERAGE)/counters; \
	$(AS_ROOT) env LLVM_PROFILE_FILE="$$LLVM_PROFILE_FILE" $(COVERAGE)/bin/banger-smoke run $(SMOKE_FLAGS) || status=1; \
	tools=$$(ls -d $$(rustc --print sysroot)/lib/rustlib/*/bin | head -1); \
	$$tools/llvm-profdata merge -sparse $(COVERAGE)/counters/*.profraw -o $(COVERAGE)/all.profdata; \
	objects=$$(for file in $(COVERAGE)/bin/banger $(COVERAGE)/bin/bangerd $(COVERAGE)/bin/bangerd-root $(COVERAGE)/bin/banger-emu \
		$$(find $(COVERAGE)/release/deps -maxdepth 1 -type f -executable ! -name '*.so'); do echo "-object $$file"; done); \
	$$tools/llvm-cov report -instr-profile=$(COVERAGE)/all.profdata $$objects --ignore-filename-regex='/\.cargo/|/rustc/|/tests?/' \
		| tee $(COVERAGE)/report.txt; \
	exit $$status

##@ Keep tidy
.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all

.PHONY: lint
lint: deps ## Check format and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: licences and advisories are not checked"; fi

.PHONY: clean
clean: ## Remove what was built
	rm -rf build target

##@ Install
.PHONY: install
install: build ## Install into PREFIX (/usr/local)
	@$(AS_ROOT) install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/banger
	@$(AS_ROOT) install -m 755 $(OUT)/banger $(OUT)/bangerd $(OUT)/bangerd-root $(DESTDIR)$(PREFIX)/bin/
	@$(AS_ROOT) install -m 755 $(OUT)/banger-emu $(OUT)/banger-agent $(DESTDIR)$(PREFIX)/lib/banger/
	@echo "installed into $(DESTDIR)$(PREFIX); next: sudo banger daemon root start --owner $(or $(CALLER),$(shell id -un)); banger doctor"

.PHONY: uninstall
uninstall: ## Stop the daemon and remove what `install` installed; says what it keeps
	@if [ -z "$(DESTDIR)" ] && [ -x $(PREFIX)/bin/banger ]; then \
		$(AS_CALLER) $(PREFIX)/bin/banger daemon stop || true; \
		$(AS_ROOT) $(PREFIX)/bin/banger daemon root stop --owner $(or $(CALLER),$(shell id -un)) || true; \
	fi
	@cd $(DESTDIR)$(PREFIX)/ && $(AS_ROOT) rm -f bin/banger bin/bangerd bin/bangerd-root lib/banger/banger-emu lib/banger/banger-agent
	@$(AS_ROOT) rmdir --ignore-fail-on-non-empty $(DESTDIR)$(PREFIX)/lib/banger 2>/dev/null || true
	@echo "kept, for you to remove: $(HOME_OF)/.config/banger (configuration), $(HOME_OF)/.local/state/banger (VMs and images), $(HOME_OF)/.cache/banger"

.PHONY: help
help: ## Show this
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / && !seen[$$1]++ {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
