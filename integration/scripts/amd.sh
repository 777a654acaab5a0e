#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# amd.sh [--virtual-time] [--time SECONDS] [--memory MIB] [--out DIR] COMMAND: runs a command of bash on an emulated AMD host, in this directory.
#
# The host is QEMU's software CPU (TCG) with SVM and nested paging and Debian's kernel with its kvm_amd. Its root is this
# machine's, read-only; what the command writes goes to a tmpfs above it and is gone afterwards, but for what it writes
# in DIR. It has /dev/kvm, /dev/net/tun, a network of its own (loopback), bridges, nftables, FUSE. What the command prints
# comes out line by line; standard input is empty. `emulated.sh` tells the exit status.
#
# Its clock is this machine's, so that it is some 50 times as slow as a real host: a guest whose kernel has 250 ticks a second
# does nothing else. With --virtual-time its clock counts its own instructions, 2 ns each, as long as it has something to do: what
# runs there finds a host of usual speed, and takes as long as it takes. It has one CPU then: with two, QEMU 7.2 does not
# start the second.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=emulated.sh
. "$(dirname "${BASH_SOURCE[0]}")/emulated.sh"

CPUS=2 CLOCK=()
if [ "${1:-}" = --virtual-time ]; then
    CPUS=1 CLOCK=(-icount "shift=1,sleep=on")
    shift
fi
arguments "amd.sh [--virtual-time] [--time SECONDS] [--memory MIB] [--out DIR] COMMAND" 6144 "$@"
[ ${#FILES[@]} -eq 0 ] || die "one command, please: quote it"
needs qemu-system-x86_64 qemu-system-x86
needs busybox busybox-static
needs cpio cpio
needs modprobe kmod
host_kernel
host_begin

root=$WORK/root
mkdir -p "$root"/{bin,sbin,dev,proc,sys,lower,share,upper,new}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount mkdir modprobe chroot poweroff cp sync sleep mknod; do
    ln -s busybox "$root/bin/$applet"
done
ln -s ../bin/busybox "$root/sbin/modprobe"
install -m 755 "$REPO_DIR/integration/emulated/amd-init.sh" "$root/init"
kernel_modules "$root" virtio_pci virtio_console 9pnet_virtio 9p overlay
pack "$root" >"$WORK/initrd"

share=$WORK/share
command_file >"$share/command"
case $PWD/ in /tmp/*) echo shared ;; *) echo own ;; esac >"$share/tmp"
shared() { echo -virtfs "local,path=$1,mount_tag=$2,security_model=none,multidevs=remap${3:-}"; }
# shellcheck disable=SC2046
set -- $(shared / root ,readonly=on) $(shared "$share" share)
if [ -n "$OUT" ]; then
    echo "$OUT" >"$share/out"
    # shellcheck disable=SC2046
    set -- "$@" $(shared "$OUT" out)
fi

# One thread for both CPUs: with one each, QEMU 7.2 can keep what it translated from code that the other CPU was changing.
# The host's kernel changes its own code by way of INT3 whenever its first machine is made or its last one ends, and a CPU that
# has such an INT3 for good takes it for ever: the host stands still, with `preempt_notifier_key` in __schedule() as a rule.
host_run qemu-system-x86_64 -accel tcg,thread=single "${CLOCK[@]}" -cpu max -smp "$CPUS" -m "$MEMORY" -display none -monitor none -no-reboot -nic none \
    -kernel "$KERNEL/vmlinuz" -initrd "$WORK/initrd" \
    -append "console=ttyS0 quiet panic=-1 softlockup_panic=1 watchdog_thresh=30 mitigations=off modules=$KERNEL/lib/modules/$KERNEL_VERSION" \
    -serial "file:$WORK/console" -device virtio-serial-pci -chardev "file,id=output,path=$WORK/output" -device virtserialport,chardev=output,nr=1 \
    -device virtio-rng-pci "$@"
host_result
