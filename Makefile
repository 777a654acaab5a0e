# Two commands do everything on a fresh Debian machine: `make demo` and `make test`.
SCRIPTS := integration/scripts

.PHONY: help demo recording test soak bench guest build man deb lint setup clean
help:
	@echo 'make demo   a pair with Redis whose hosts are killed under a client (2 minutes after the first build)'
	@echo 'make recording   record a Redis machine under load, verify the recording (2 minutes)'
	@echo 'make test   every test; TEST=name runs some'
	@echo 'make soak   the long forms of the tests'
	@echo 'make bench  measure; tables and target/bench/*.json'
	@echo 'make guest  build the test guest into target/guest'
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

demo: guest build
	target/release/lockstep-demo

recording: guest build
	target/release/lockstep-recording

test:
	@$(SCRIPTS)/test.sh

soak:
	@LOCKSTEP_SOAK=1 $(SCRIPTS)/test.sh

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
