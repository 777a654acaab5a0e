# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Shared by the scripts behind `make`.

REPO_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$REPO_DIR/target}")
export TARGET_DIR
# Messages and order as everywhere, and UTF-8: Ansible wants no other encoding.
export LC_ALL=C.UTF-8

say() { printf 'lockstep: %s\n' "$*" >&2; }
die() { printf 'lockstep: error: %s\n' "$*" >&2; exit 1; }

# The names in package lists, without their reasons.
listed() { sed -e 's/#.*//' "$@" | tr -s ' \t' '\n' | sed '/^$/d' | sort -u; }

# Whether this process can do what root does, with or without sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_root() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

# Runs a command again where it fails, twice: a mirror may be changing, or out of reach for a moment.
retry() {
    local try
    for try in 1 2; do
        "$@" && return
        say "this has failed, and is tried again: $*"
        sleep $((10 * try))
    done
    "$@"
}

has_kvm() { [ -r /dev/kvm ] && [ -w /dev/kvm ]; }

# Where Debian packages come from: DEBIAN_MIRROR, or else the mirror of this machine's own.
mirror() {
    local found
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        sed -n -E 's/^URIs: *([^ ]*).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' | sed -n 1p) || true
    echo "${DEBIAN_MIRROR:-${found:-http://deb.debian.org/debian}}"
}

# What people see of the tests' output while they run.
# shellcheck disable=SC2034
RESULT='^(test .* \.\.\. (ok|FAILED|ignored)|test result: F|error|lockstep: error|SKIPPED|running .* on an emulated)'

# Name, executable and its package's directory of each test binary, built; a name of its own each.
test_binaries() {
    cargo test --release --locked --workspace --no-run --message-format=json 2>/dev/null |
        sed -n -E '/"profile":\{[^}]*"test":true/ s/.*"manifest_path":"([^"]*)\/Cargo.toml","target":\{"kind":\["([^"]*)"\][^}]*"name":"([^"]*)".*"executable":"([^"]*)".*/\2 \3 \4 \1/p' |
        awk '{print ($1 == "bin" ? $2 "-bin" : $2), $3, $4}'
}
