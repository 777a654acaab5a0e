#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Builds the guest's vmlinux: Debian's kernel source, our patches, tinyconfig and our fragment.
# shellcheck source-path=SCRIPTDIR/..
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$GUEST_DIR/sources.sh"

KERNEL_DIR=$GUEST_DIR/kernel
TREE=$WORK_DIR/linux
# Names and dates of the build machine would make two builds differ.
KERNEL_MAKE=(make -C "$TREE" ARCH=x86_64 KBUILD_BUILD_USER=lockstep KBUILD_BUILD_HOST=guest KBUILD_BUILD_VERSION=1
    "KBUILD_BUILD_TIMESTAMP=$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
    "KCFLAGS=-fdebug-prefix-map=$TREE=." "KAFLAGS=-fdebug-prefix-map=$TREE=.")

configure_kernel() {
    # Both overwrite settings, and Kconfig's reports about that say nothing new.
    "${KERNEL_MAKE[@]}" -s tinyconfig >/dev/null 2>&1
    cat "$KERNEL_DIR/config.fragment" >>"$TREE/.config"
    "${KERNEL_MAKE[@]}" -s olddefconfig >/dev/null 2>&1
    check_config "$KERNEL_DIR/config.fragment" "$TREE/.config"
}

build_kernel() {
    local to=$1 patch
    say "unpacking the kernel"
    unpack_source linux "$TREE"
    for patch in "$KERNEL_DIR"/patches/*.patch; do
        patch -s -p1 -F0 -d "$TREE" <"$patch"
    done
    configure_kernel
    say "building the kernel (5 minutes of one core)"
    "${KERNEL_MAKE[@]}" -s -j"$JOBS" vmlinux
    cp "$TREE/.config" "$to/config"
    cp "$TREE/vmlinux" "$to/vmlinux"
    # The tree is 2 GB and can be had again; KEEP_WORK=1 keeps it for debugging with source lines.
    [ -n "${KEEP_WORK:-}" ] || rm -rf "$TREE"
}

fetch_source linux deb linux-source-6.1
key=$({
    cat "$SOURCES_DIR/linux/MANIFEST"
    gcc --version | head -n 1
    ld --version | head -n 1
} | input_hash kernel "$KERNEL_DIR"/{build-kernel.sh,config.fragment} "$KERNEL_DIR"/patches/*.patch)
built=$(cached "$key" build_kernel)
publish "$built/vmlinux"
