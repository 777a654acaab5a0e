#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# stock-kernel.sh: fetches Debian's own kernel for virtual machines into target/stock/vmlinuz, once: a guest that nobody built
# for us.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

dir=$TARGET_DIR/stock
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
[ ! -f "$dir/vmlinuz" ] || exit 0

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

say "fetching Debian's kernel for virtual machines (30 MB, once)"
rm -rf "$dir/partial"
mkdir "$dir/partial"
cd "$dir/partial"
retry download || die "Debian's kernel for virtual machines cannot be fetched: $(tail -n 1 errors 2>/dev/null || echo 'apt knows no linux-image-cloud-amd64')"
dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*'
mv boot/vmlinuz-* "$dir/vmlinuz"
rm -rf "$dir/partial"
