#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# setup.sh [tests|build]: checks this machine and installs the Debian packages that are missing.
# Without a terminal as root, or with YES=1, it does not ask.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

what=${1:-tests}
# The oldest Rust that builds the workspace (Cargo.toml says the same).
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml")

[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); Lockstep runs on amd64 (x86-64) only"
[ "$(uname -s)" = Linux ] || die "this is $(uname -s); Lockstep needs Linux with KVM"

free_mib=$(df -Pm "$REPO_DIR" | awk 'NR==2 {print $4}')
[ "$free_mib" -ge 12000 ] || die "only $free_mib MiB are free where the repository is; 12,000 are needed (kernel build 2,000, Rust build 6,000, recordings 1,000)"

if ! command -v cargo >/dev/null; then
    die "cargo is missing: install Rust $rust_needed or newer (https://rustup.rs; Debian 12's own is too old)"
fi
rust_have=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n%s\n' "$rust_needed" "${rust_have%%-*}" | sort -V | head -n 1)" != "$rust_needed" ]; then
    die "Rust $rust_have is too old: $rust_needed or newer is needed (rustup update stable)"
fi

lists=("$REPO_DIR/integration/packages.txt")
[ "$what" = build ] || lists+=("$REPO_DIR/integration/guest/packages.txt")

missing=()
if command -v dpkg-query >/dev/null; then
    while read -r package; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done < <(listed "${lists[@]}")
else
    say "this is no Debian machine: install by hand what $(printf '%s ' "${lists[@]#"$REPO_DIR"/}")name"
fi

if [ ${#missing[@]} -gt 0 ]; then
    say "Debian packages to install (two minutes, 550 MB): ${missing[*]}"
    if ! can_root; then
        say "neither root nor sudo without a password: they are not installed, and what needs them is skipped"
        exit 0
    fi
    if [ "${YES:-}" != 1 ] && [ -t 0 ]; then
        read -r -p "lockstep: install them now? [y/N] " answer
        case $answer in y | Y | yes) ;; *) die "not installed; install them yourself, or run again with YES=1" ;; esac
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}" >&2
fi
