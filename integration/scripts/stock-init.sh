#!/bin/busybox sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=dash
# stock-init.sh: the first program of a guest with Debian's own kernel, in an initrd (stock-kernel.sh). It loads the modules, shows
# what they found by ACPI, and ends in order when the power button is pressed. What it prints for the tests begins with STOCK.
# stock_address=A.B.C.D/N and stock_peer=A.B.C.D on the kernel's command line: its network card's address, and whom it pings.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

while read -r module; do
    insmod "/modules/$module.ko" || echo "STOCK-FAILED insmod $module"
done </modules/order

for device in /sys/bus/virtio/devices/*; do
    echo "STOCK-VIRTIO $(readlink -f "$device" | sed 's,/sys/devices/,,')"
done
if mount -t ext4 /dev/vda /disk; then
    echo "STOCK-DISK $(cat /disk/words)"
    echo answered >/disk/answer
fi
echo "STOCK-CARD $(cat /sys/class/net/eth0/address)"
# shellcheck disable=SC2154
if [ -n "$stock_address" ]; then
    ip addr add "$stock_address" dev eth0
    ip link set eth0 up
    ping -c 1 -w 60 "$stock_peer" >/dev/null && echo "STOCK-PING $stock_peer"
fi
dmesg -r | sed -n 's/^<[0-3]>/STOCK-ERROR /p'
for input in /sys/class/input/event*; do
    if grep -q 'Power Button' "$input/device/name"; then
        button=/dev/input/${input##*/}
    fi
done
echo "STOCK-READY $button"
# An event has 24 bytes: time, type 1 (a key), code 116 (power), value 1 (pressed).
event=$(dd if="$button" bs=24 count=1 2>/dev/null | od -A n -t u2 -j 16 | xargs)
echo "STOCK-EVENT $event"
umount /disk && poweroff -f
echo "STOCK-FAILED to power off"
exec sh
