#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# stock-debian.sh 12|13: makes target/stock-debian/12.img, once: a Debian as one installs it, and nothing of ours in it. Its own
# kernel and initramfs, systemd, OpenSSH, PostgreSQL, Redis, on a disk with a partition table (GPT) and ext4.
# Its root's password is "debian"; `id` beside it is the key for ssh. Its card has the address 10.77.0.2/24.
# `client-12` has its pgbench and psql with their libraries, `repository-12` the kernel of its security updates, for apt.
# DEBIAN_MIRROR names a mirror; without it, the one that this machine's packages come from.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export PATH=$PATH:/usr/sbin:/sbin

case ${1:-} in
    12) suite=bookworm ;;
    13) suite=trixie ;;
    *) die "usage: stock-debian.sh 12|13" ;;
esac
# MiB of the disk, and where its partition begins.
DISK_MIB=3072
FIRST_MIB=1
PACKAGES=linux-image-cloud-amd64,systemd-sysv,systemd-timesyncd,dbus,libpam-systemd,udev,kmod,initramfs-tools,zstd,e2fsprogs,iproute2,iputils-ping,openssh-server,postgresql,redis-server,ca-certificates,less,procps

dir=$TARGET_DIR/stock-debian
image=$dir/$1.img
root=$dir/root-$1
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
stamp=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
if [ "$(cat "$image.stamp" 2>/dev/null || true)" = "$stamp" ] && [ -f "$image" ]; then
    exit 0
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
for program in debootstrap mkfs.ext4 sfdisk ssh-keygen; do
    command -v "$program" >/dev/null || die "$program is missing (Debian packages debootstrap, e2fsprogs, fdisk, openssh-client)"
done

say "making a Debian $1 (five minutes)"
bootstrap() {
    # What an attempt before has left mounted would be removed with it.
    umount -R "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$root"
    DEBIAN_FRONTEND=noninteractive debootstrap --variant=minbase --include="$PACKAGES" "$suite" "$root" "$(mirror)" >"$dir/log-$1" 2>&1
}
retry bootstrap "$1" || die "debootstrap has failed: $(tail -n 1 "$dir/log-$1")"

[ -f "$dir/id" ] || ssh-keygen -q -t ed25519 -N '' -C "" -f "$dir/id"
disk=$(cat /proc/sys/kernel/random/uuid)
part=$(cat /proc/sys/kernel/random/uuid)
echo debian >"$root/etc/hostname"
echo "PARTUUID=$part / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
printf '[Match]\nName=e*\n\n[Network]\nAddress=10.77.0.2/24\nLinkLocalAddressing=no\n' >"$root/etc/systemd/network/card.network"
install -D -m 600 "$dir/id.pub" "$root/root/.ssh/authorized_keys"
echo root:debian | chroot "$root" chpasswd
chroot "$root" systemctl -q enable systemd-networkd
# As an installer leaves it: the system's identity is the first boot's to make.
: >"$root/etc/machine-id"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
# What reaches its database from outside: its own programs, for hosts that have none of these.
rm -rf "$dir/client-$1"
mkdir -p "$dir/client-$1"
for program in pgbench psql; do
    cp "$root"/usr/lib/postgresql/*/bin/$program "$dir/client-$1/"
    chroot "$root" ldd "/usr/lib/postgresql/$(ls "$root/usr/lib/postgresql")/bin/$program" | grep -oE '/[^ ]+' | while read -r library; do
        cp -L "$root/$library" "$dir/client-$1/"
    done
done
# The kernel to upgrade to.
kernel() {
    rm -rf "$dir/repository-$1"
    mkdir -p "$dir/repository-$1" "$dir/apt/lists/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror)-security $suite-security main" >"$dir/apt/sources.list"
    local apt=(-qq -o "Dir::Etc::SourceList=$dir/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$dir/apt/lists"
        -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=") package
    apt-get "${apt[@]}" update >>"$dir/log-$1" 2>&1 || return
    package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p)
    if [ -z "$package" ] || [ -e "$root/usr/share/doc/$package" ]; then
        die "the security updates of Debian $1 have no newer kernel than itself"
    fi
    (cd "$dir/repository-$1" && apt-get "${apt[@]}" download "$package") >>"$dir/log-$1" 2>&1 || return
    cd "$dir/repository-$1"
    local file
    for file in *.deb; do
        dpkg-deb -f "$file"
        echo "Filename: ./$file"
        echo "Size: $(stat -c %s "$file")"
        echo "SHA256: $(sha256sum "$file" | cut -d' ' -f1)"
    done >Packages
    cd "$REPO_DIR"
    rm -rf "$dir/apt"
}
retry kernel "$1" || die "the newer kernel cannot be fetched: $(tail -n 1 "$dir/log-$1")"
[ -e "$root/vmlinuz" ] || [ -e "$root/boot/vmlinuz" ] || die "Debian's kernel made no link to itself"

rm -f "$image" "$image.stamp"
truncate -s "${DISK_MIB}M" "$image"
sfdisk -q "$image" <<END
label: gpt
label-id: $disk
start=${FIRST_MIB}MiB, size=$((DISK_MIB - 2 * FIRST_MIB))MiB, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, uuid=$part
END
# No mount: the files go in as the file system is made.
mkfs.ext4 -q -F -d "$root" -E "offset=$((FIRST_MIB << 20)),lazy_itable_init=0,lazy_journal_init=0" "$image" "$((DISK_MIB - 2 * FIRST_MIB))M"
rm -rf --one-file-system "$root"
echo "$stamp" >"$image.stamp"
