#!/bin/bash
# Debian's kernel for virtual machines ("cloud") has virtio_mmio, as a module, and cannot be told by its command line where the devices
# are: CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES is not set, so the module has no parameter `device`. Words like
# virtio_mmio.device=512@0xd0000000:5, by which small machine monitors tell their guests of disks and cards, are taken without an error
# (of a module's unknown parameter there is one line in the kernel's messages, when it is loaded) and no device appears. What this
# kernel finds them by is ACPI: a device with the hardware id LNRO0005 in the DSDT. The module has that alias, by which udev loads it.
#
# Seen on 2026-11-29 with Debian 12's linux-image-6.1.0-56-cloud-amd64 6.1.192-2.
#     CONFIG_VIRTIO_MMIO: m
#     CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: not set
#     parameters of virtio_mmio: none
#     aliases of virtio_mmio: acpi*:LNRO0005:* of:N*T*Cvirtio,mmio of:N*T*Cvirtio,mmioC*
set -euo pipefail
package=linux-image-6.1.0-56-cloud-amd64
version=6.1.192-2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download "$package=$version" 2>/dev/null
dpkg-deb -x "$package"_*.deb .
config=$(find boot -name 'config-*')
module=$(find . -name 'virtio_mmio.ko*')

option() { sed -n -E "s/^CONFIG_$1=(.*)/\1/p; s/^# CONFIG_$1 is (not set)/\1/p" "$config"; }
mmio=$(option VIRTIO_MMIO)
words=$(option VIRTIO_MMIO_CMDLINE_DEVICES)
parameters=$(/sbin/modinfo -F parm "$module" | paste -s -d ' ')
aliases=$(/sbin/modinfo -F alias "$module" | sort | paste -s -d ' ')
echo "CONFIG_VIRTIO_MMIO: $mmio"
echo "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: $words"
echo "parameters of virtio_mmio: ${parameters:-none}"
echo "aliases of virtio_mmio: $aliases"
if [ "$mmio" = m ] && [ "$words" = "not set" ] && [ -z "$parameters" ] && [[ $aliases = *LNRO0005* ]]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
