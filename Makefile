# Two commands do everything on a fresh Debian machine: `make demo` and `make test`.
SCRIPTS := integration/scripts
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help ready demo recording test soak amd bench guest guest-debian build man deb lint setup clean
# Each step needs what the one before has set up.
.NOTPARALLEL:

# Runs a program as root, by sudo where this is another user, and gives that user what it wrote.
define as_root
@if [ "$$(id -u)" = 0 ]; then exec $(TARGET)/release/$(1); fi; \
status=0; sudo -n --preserve-env=KEEP,CARGO_TARGET_DIR $(TARGET)/release/$(1) || status=$$?; \
sudo -n chown -R "$$(id -u):$$(id -g)" $(TARGET)/$(2) 2>/dev/null; exit $$status
endef

help:
	@echo 'make demo   a pair with Redis whose hosts are killed under a client (2 minutes after the first build);'
	@echo '            KEEP=1 leaves the pair up'
	@echo 'make recording   record a Redis machine under load, verify the recording (2 minutes)'
	@echo 'make test   every test; TEST=name runs some'
	@echo 'make soak   the long forms of the tests'
	@echo "make amd CMD='target/release/lockstep-primary probe'   run a command on an emulated AMD host (SVM, nested paging);"
	@echo '            OUT=DIR keeps what it writes there, LIMIT=SECONDS bounds it (600)'
	@echo 'make bench  measure; tables and target/bench/*.json'
	@echo 'make guest  build the test guest into target/guest'
	@echo 'make guest-debian   make a Debian 12 and a Debian 13 as one installs them, into target/stock-debian'
	@echo 'make build  build the programs into target/release'
	@echo 'make man    manual pages and completions of all programs, into target/man and target/completions'
	@echo 'make deb    the Debian package, into target/deb; LOCKSTEP_VERSION=1.2~3 gives it another version'
	@echo 'make lint   formatting and lints'

setup:
	@$(SCRIPTS)/setup.sh tests

build:
	@$(SCRIPTS)/setup.sh build
	cargo build --release --locked --workspace

guest: setup
	integration/guest/build.sh all

guest-debian: setup
	$(SCRIPTS)/stock-debian.sh 12
	$(SCRIPTS)/stock-debian.sh 13

# What the programs of these two need, before anything is installed or built.
ready:
	@$(SCRIPTS)/setup.sh demo

demo: ready guest build
	$(call as_root,lockstep-demo,demo)

recording: ready guest build
	$(call as_root,lockstep-recording,recording)

test:
	@$(SCRIPTS)/test.sh

soak:
	@LOCKSTEP_SOAK=1 $(SCRIPTS)/test.sh

# The command comes from the environment: make's own quoting has no part in it.
amd: override export CMD := $(value CMD)
amd: setup build
	@$(SCRIPTS)/amd.sh $(if $(OUT),--out '$(OUT)') $(if $(LIMIT),--time '$(LIMIT)') -- "$$CMD"

bench: guest build
	@$(SCRIPTS)/bench.sh

man: build
	@$(SCRIPTS)/man.sh

deb: man
	@$(SCRIPTS)/deb.sh

lint:
	@$(SCRIPTS)/lint.sh

clean:
	cargo clean
