#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# build.sh kernel|initrd|all|packages
#
#   kernel    target/guest/vmlinux
#   initrd    target/guest/general.cpio and redis.cpio
#   all       both
#   packages  only prints the Debian packages that are missing, one per line
#
# What is built is kept under target/guest/cache, named by a hash of everything that goes in.
# shellcheck source=lib.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

[ $# -eq 1 ] || usage
case $1 in
    packages)
        missing_packages
        exit
        ;;
    kernel) steps=(kernel/build-kernel.sh) ;;
    initrd) steps=(rootfs/build-initrd.sh) ;;
    all) steps=(rootfs/build-initrd.sh kernel/build-kernel.sh) ;;
    *) usage ;;
esac

check_packages
mkdir -p "$OUT_DIR" "$CACHE_DIR" "$WORK_DIR"
# Tests may ask for the guest in parallel: one builds, the others wait and find it built.
exec 9>"$OUT_DIR/.lock"
flock 9
for step in "${steps[@]}"; do
    "$GUEST_DIR/$step" 9>&-
done
say "ready in ${OUT_DIR#"$REPO_DIR"/}"
