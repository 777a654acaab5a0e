#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# host.sh NAME NAMESPACE DIRECTORY: runs a host in a container, in the foreground. Its root is target/hosts/root and what it
# wrote in DIRECTORY; its network is a namespace that is there; whoever has DIRECTORY/key may log in as `ops`. It is called in
# namespaces of its own for mounts and processes: when this process is killed, its host loses its power, and nothing is left.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
name=$1 namespace=$2 dir=$3
root=$dir/root

mkdir -p "$dir"/{upper,work,root,dev}
if ! mount -t overlay overlay -o "lowerdir=$TARGET_DIR/hosts/root,upperdir=$dir/upper,workdir=$dir/work" "$root" 2>/dev/null; then
    # Not on this file system: a copy of its own, made as it is first started.
    [ -d "$root/etc" ] || cp -a "$TARGET_DIR/hosts/root/." "$root"
fi
if ! grep -qs " $name\$" "$root/etc/hosts"; then
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >"$root/etc/hosts"
fi
install -D -m 600 "$dir/key.pub" "$root/home/ops/.ssh/authorized_keys"
chown -R --reference="$root/home/ops" "$root/home/ops/.ssh"

# A device of its own: the container sets its owner, and this machine's must not change.
mount -t tmpfs -o mode=755 none "$dir/dev"
mknod -m 660 "$dir/dev/kvm" c 10 232
chown "root:$(awk -F: '$1 == "kvm" {print $3}' "$root/etc/group")" "$dir/dev/kvm"

# Control groups of its own, where systemd keeps its services (cgroup v2, or v1 beside it): two containers in one would end
# each other's.
while IFS=: read -r _ kind path; do
    case $kind in
        "") for top in /sys/fs/cgroup/unified /sys/fs/cgroup; do [ ! -f "$top/cgroup.procs" ] || break; done ;;
        name=systemd) top=/sys/fs/cgroup/systemd ;;
        *) continue ;;
    esac
    mkdir -p "$top${path%/}/$namespace"
    echo 0 >"$top${path%/}/$namespace/cgroup.procs"
done </proc/self/cgroup

# Of /proc/sys a host may write what belongs to its own network.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --quiet --boot --register=no --keep-unit --machine="$name" --directory="$root" \
    --network-namespace-path="/run/netns/$namespace" --capability=CAP_NET_ADMIN --bind="$dir/dev/kvm:/dev/kvm" \
    --console=pipe --resolv-conf=off --timezone=off --link-journal=no
