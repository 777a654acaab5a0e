#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first program of the emulated AMD host (amd.sh): takes the machine that it was started from for its root, read-only with
# a tmpfs above it, and runs what lies in the share. The kernel command line's `modules=` is the directory of its modules.
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
read -r command_line </proc/cmdline
for word in $command_line; do
    case $word in modules=*) modules=${word#modules=} ;; esac
done
version=${modules##*/}
share() { mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"; }

modprobe -a virtio_pci virtio_console 9pnet_virtio 9p overlay
share root /lower cache=loose,ro
share share /share cache=none
# All modules, for what the kernel loads by itself: it calls the modprobe of this root.
mount -o bind "/lower$modules" "/lib/modules/$version"
modprobe -a kvm kvm_amd tun veth bridge loop fuse

mount -t tmpfs -o size=80% none /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work none /new
for directory in proc sys dev run tmp; do
    mkdir -p "/new/$directory"
done
mount -t proc none /new/proc
mount -t sysfs none /new/sys
mount -t cgroup2 none /new/sys/fs/cgroup
mount -t devtmpfs none /new/dev
mkdir -p /new/dev/pts /new/dev/shm /new/dev/net
mount -t devpts none /new/dev/pts
mount -t tmpfs none /new/dev/shm
[ -e /new/dev/net/tun ] || mknod /new/dev/net/tun c 10 200
mount -t tmpfs none /new/run
# What is tested may lie in /tmp; else it is as on any host.
read -r tmp </share/tmp
[ "$tmp" != own ] || mount -t tmpfs none /new/tmp
mkdir -p "/new/lib/modules/$version"
mount -o bind "/lower$modules" "/new/lib/modules/$version"
if [ -s /share/out ]; then
    read -r out </share/out
    mkdir -p "/new$out"
    share out "/new$out" cache=none
fi
cp /share/command /new/run/command
# The driver hears of its port after it has begun.
until [ -c /dev/vport0p1 ]; do sleep 0.1; done

: >/share/up
chroot /new /usr/bin/env -i HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /bin/bash -c 'ip link set lo up; exec bash /run/command' </dev/null >/dev/vport0p1 2>&1
echo $? >/share/status
sync
poweroff -f
