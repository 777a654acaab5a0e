#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# stock-kernel.sh: fetches Debian's own kernel for virtual machines into target/stock, once: a guest that nobody built for us.
# There are vmlinuz, the modules that the tests load, and initrd.cpio: they, Debian's busybox and stock-init.sh as its first program.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dir=$TARGET_DIR/stock
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9

# In the order in which they need each other.
MODULES=(virtio_ring virtio failover net_failover virtio_mmio virtio_blk virtio_net evdev button)

fetched() {
    local module
    [ -f "$dir/vmlinuz" ] || return 1
    for module in "${MODULES[@]}"; do [ -f "$dir/modules/$module.ko" ] || return 1; done
}

download() {
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p)
    if [ -n "$package" ] && apt-get -qq download "$package" 2>errors; then
        return
    fi
    # The lists are missing, or older than what the mirror has.
    can_root && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    return 1
}

fetch() {
    say "fetching Debian's kernel for virtual machines (30 MB, once)"
    rm -rf "$dir/partial"
    mkdir -p "$dir/partial" "$dir/modules"
    cd "$dir/partial"
    retry download || die "Debian's kernel for virtual machines cannot be fetched: $(tail -n 1 errors 2>/dev/null || echo 'apt knows no linux-image-cloud-amd64')"
    local module files=()
    for module in "${MODULES[@]}"; do files+=("./lib/modules/*/$module.ko"); done
    dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*' "${files[@]}"
    find lib -name '*.ko' -exec mv -t "$dir/modules" {} +
    mv boot/vmlinuz-* "$dir/vmlinuz"
    cd "$dir"
    rm -rf "$dir/partial"
}

# Nothing of ours but its first program.
initrd() {
    local root=$dir/root
    rm -rf "$root"
    mkdir -p "$root"/{bin,dev,proc,sys,disk}
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp -r "$dir/modules" "$root/modules"
    printf '%s\n' "${MODULES[@]}" >"$root/modules/order"
    install -m 755 "$REPO_DIR/integration/scripts/stock-init.sh" "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet) >"$dir/initrd.partial"
    mv "$dir/initrd.partial" "$dir/initrd.cpio"
    rm -rf "$root"
}

fetched || fetch
if [ ! -f "$dir/initrd.cpio" ] || [ "$REPO_DIR/integration/scripts/stock-init.sh" -nt "$dir/initrd.cpio" ] || [ "$0" -nt "$dir/initrd.cpio" ]; then
    initrd
fi
