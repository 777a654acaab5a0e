#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# hosts.sh: makes target/hosts/root, once: a Debian with systemd and sshd that hosts in containers start from, as an operator
# is given them. What roles install from Debian lies in it as a repository (/srv/packages): the hosts reach no mirror.
# DEBIAN_MIRROR names a mirror; without it, the one that this machine's packages come from.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export PATH=$PATH:/usr/sbin:/sbin

suite=bookworm
# An operator's host has these; the rest is what minbase has.
have=systemd,systemd-sysv,udev,dbus,openssh-server,sudo,python3-minimal,python3-apt,iproute2
# What roles install.
wanted=etcd-server
dir=$TARGET_DIR/hosts
root=$dir/root
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9

stamp=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
if [ "$(cat "$dir/stamp" 2>/dev/null || true)" = "$stamp" ] && [ -d "$root" ]; then
    exit 0
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
command -v debootstrap >/dev/null || die "debootstrap is missing (Debian package debootstrap)"

say "making a Debian root for hosts in containers (three minutes)"
rm -rf "$root" "$dir/stamp"
bootstrap() {
    rm -rf "$dir/partial"
    debootstrap --variant=minbase --include="$have" "$suite" "$dir/partial" "$(mirror)" >"$dir/log" 2>&1
}
retry bootstrap ||
    die "debootstrap has failed: $(tail -n 1 "$dir/log")"
inside() { chroot "$dir/partial" env DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@" >>"$dir/log" 2>&1; }

packages=$dir/partial/srv/packages
mkdir -p "$packages"
inside apt-get -q clean
retry inside apt-get -q update
retry inside apt-get -q -y --no-install-recommends --download-only install "$wanted"
mv "$dir/partial"/var/cache/apt/archives/*.deb "$packages"
for deb in "$packages"/*.deb; do
    dpkg-deb -f "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "${deb##*/}" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d' ' -f1)"
done >"$packages/Packages"
rm -rf "$dir/partial"/var/lib/apt/lists/* "$dir/partial"/var/cache/apt/*.bin
echo 'deb [trusted=yes] file:/srv/packages ./' >"$dir/partial/etc/apt/sources.list"
inside apt-get -q update

# The operator's account; a test adds its key.
inside useradd --create-home --shell /bin/bash ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' >"$dir/partial/etc/sudoers.d/ops"
chmod 0440 "$dir/partial/etc/sudoers.d/ops"
# What a container need not do.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer console-getty.service; do
    ln -sf /dev/null "$dir/partial/etc/systemd/system/$unit"
done
printf 'UseDNS no\n' >"$dir/partial/etc/ssh/sshd_config.d/container.conf"
: >"$dir/partial/etc/machine-id"
rm -f "$dir/partial/etc/hostname" "$dir/partial/etc/resolv.conf"
rm -rf "$dir/partial"/usr/share/{doc,man,locale,i18n}/*
mv "$dir/partial" "$root"
echo "$stamp" >"$dir/stamp"
