#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# debian.sh: makes target/debian/root.img, once: a small Debian as an ext4 image that the test guest's kernel starts from.
# DEBIAN_MIRROR names a mirror; without it, the one that this machine's packages come from.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

suite=bookworm
init=$REPO_DIR/integration/scripts/debian-init.sh
rdtsc3=$REPO_DIR/integration/guest/programs/rdtsc3.c
dir=$TARGET_DIR/debian
image=$dir/root.img
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9

# Whatever changes the image: this script, the guest's init and its own program.
stamp=$(cat "${BASH_SOURCE[0]}" "$init" "$rdtsc3" | sha256sum | cut -d" " -f1)
if [ "$(cat "$dir/stamp" 2>/dev/null || true)" = "$stamp" ] && [ -f "$image" ]; then
    exit 0
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
for program in debootstrap mkfs.ext4 musl-gcc; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null ||
        die "$program is missing (Debian packages debootstrap, e2fsprogs, musl-tools)"
done

say "making a Debian root file system (three minutes)"
rm -rf "$dir/root" "$dir/stamp" "$image"
if [ ! -x "$dir/pristine/usr/bin/python3" ]; then
    rm -rf "$dir/pristine"
    bootstrap() {
        rm -rf "$dir/partial"
        PATH=$PATH:/usr/sbin:/sbin debootstrap --variant=minbase --include=openssl,python3-minimal "$suite" "$dir/partial" "$(mirror)" >"$dir/log" 2>&1
    }
    retry bootstrap || die "debootstrap has failed: $(tail -n 1 "$dir/log")"
    mv "$dir/partial" "$dir/pristine"
fi
cp -a "$dir/pristine" "$dir/root"
# What nobody reads in a test would only be copied to the backup.
rm -rf "$dir/root"/usr/share/{doc,man,locale,i18n,zoneinfo} "$dir/root"/var/{cache/apt,lib/apt/lists}/*
install -m 755 "$init" "$dir/root/lockstep-init"
musl-gcc -O2 -static -o "$dir/root/usr/local/bin/rdtsc3" "$rdtsc3"
# No mount: the files go in as the file system is made.
PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -d "$dir/root" -O ^metadata_csum -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$image" 256M
rm -rf "$dir/root"
echo "$stamp" >"$dir/stamp"
