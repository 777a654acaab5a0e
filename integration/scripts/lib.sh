# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Shared by the scripts behind `make`.

REPO_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export TARGET_DIR=$REPO_DIR/target
export LC_ALL=C

say() { printf 'lockstep: %s\n' "$*" >&2; }
die() { printf 'lockstep: error: %s\n' "$*" >&2; exit 1; }

# The names in package lists, without their reasons.
listed() { sed -e 's/#.*//' "$@" | tr -s ' \t' '\n' | sed '/^$/d' | sort -u; }

# Whether this process can do what root does, with or without sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_root() { [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }

has_kvm() { [ -r /dev/kvm ] && [ -w /dev/kvm ]; }
