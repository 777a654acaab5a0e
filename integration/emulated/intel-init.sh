#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first program of the emulated Intel host (intel.sh): runs /command with what the initramfs has. What it prints leaves by
# the second serial port; its status by the console; what it wrote in the directory that /out names, as a tar on the disk.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t tmpfs none /run
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
modprobe -a kvm_intel tun
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
# Without the terminal's work: a line feed stays one. A port of 9,600 baud would lose what is in it when the power goes.
stty -F /dev/ttyS1 115200 raw

echo LOCKSTEP-UP >/dev/console
env -i HOME=/root TERM=dumb PATH="$PATH" /bin/bash /command </dev/null >/dev/ttyS1 2>&1
status=$?
if [ -s /out ]; then
    modprobe -a ata_piix sd_mod
    until [ -b /dev/sda ]; do sleep 1; done
    read -r out </out
    tar -c -C "$out" . | dd of=/dev/sda bs=64k
    sync
fi
echo "LOCKSTEP-STATUS $status" >/dev/console
sleep 2
poweroff -f
