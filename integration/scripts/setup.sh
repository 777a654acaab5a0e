#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# setup.sh [tests|build|demo]: checks this machine and installs the Debian packages that are missing. For the demo it first
# checks all that the demo needs: nobody is to build for a quarter of an hour and be refused then.
# Without a terminal as root, or with YES=1, it does not ask.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

what=${1:-tests}
# The oldest Rust that builds the workspace (Cargo.toml says the same).
rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml")

[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); Lockstep runs on amd64 (x86-64) only"
[ "$(uname -s)" = Linux ] || die "this is $(uname -s); Lockstep needs Linux with KVM"

# The demo runs as root: its hosts are network namespaces. A device may be there and yet not be this machine's to use.
if [ "$what" = demo ]; then
    can_root || die "neither root nor sudo without a password, and the demo makes network namespaces: run it as root, or allow it with a line \`$(id -un) ALL=(ALL) NOPASSWD: ALL\` in a file in /etc/sudoers.d"
    [ "$(id -u)" = 0 ] || sudo -n --preserve-env=KEEP,CARGO_TARGET_DIR true 2>/dev/null ||
        die "sudo does not let this user set variables: give its line in /etc/sudoers the tag SETENV:, or run this as root"
    [ -c /dev/kvm ] || die "there is no /dev/kvm: turn virtualization on in the firmware (in a virtual machine: nested virtualization) and \`modprobe kvm_intel\` or \`modprobe kvm_amd\`; into a container, pass the device"
    as_root sh -c ': <>/dev/kvm' 2>/dev/null || die "/dev/kvm cannot be opened by root either: in a container, allow the device; else see \`dmesg | grep -i kvm\`"
    [ -c /dev/net/tun ] || die "there is no /dev/net/tun: \`modprobe tun\`; into a container, pass the device"
    as_root sh -c ': <>/dev/net/tun' 2>/dev/null || die "/dev/net/tun cannot be opened by root either: in a container, allow the device; else \`modprobe tun\`"
fi

free_mib=$(df -Pm "$REPO_DIR" | awk 'NR==2 {print $4}')
[ "$free_mib" -ge 12000 ] || die "only $free_mib MiB are free where the repository is; 12,000 are needed (kernel build 2,000, Rust build 6,000, recordings 1,000): free some, or put the repository elsewhere"

if ! command -v cargo >/dev/null; then
    die "cargo is missing: install Rust $rust_needed or newer (https://rustup.rs; Debian 12's own is too old)"
fi
rust_have=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n%s\n' "$rust_needed" "${rust_have%%-*}" | sort -V | head -n 1)" != "$rust_needed" ]; then
    die "Rust $rust_have is too old: $rust_needed or newer is needed (rustup update stable)"
fi

if [ "$what" = demo ]; then
    [ -e "$TARGET_DIR/guest/redis.cpio" ] || say "the guest is built first: 7 minutes, once"
    [ -x "$TARGET_DIR/release/lockstep-demo" ] || say "the programs are built first: 5 minutes, once"
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
