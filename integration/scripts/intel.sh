#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# intel.sh [--time SECONDS] [--memory MIB] [--out DIR] COMMAND [FILE...]: runs a command of bash on an emulated Intel host.
#
# The host is Bochs (VMX, EPT, unrestricted guests) with Debian's kernel and its kvm_intel: one CPU, no network but loopback, no
# disk. It has the named files, where they are here, with the libraries that they need; bash and busybox. What the command
# writes in DIR comes out at its end. It is up after a minute and a half; a second there takes five to ten here.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=emulated.sh
. "$(dirname "${BASH_SOURCE[0]}")/emulated.sh"

# The largest tar of what the command leaves in DIR.
OUT_MIB=64

arguments "intel.sh [--time SECONDS] [--memory MIB] [--out DIR] COMMAND [FILE...]" 2048 "$@"
needs bochs-bin bochs
needs grub-mkrescue grub-common
needs xorriso xorriso
needs mformat mtools
needs busybox busybox-static
needs cpio cpio
needs modprobe kmod
needs gcc gcc
needs strip binutils
for file in /usr/share/vgabios/vgabios.bin=vgabios /usr/share/bochs/BIOS-bochs-latest=bochsbios /usr/lib/grub/i386-pc/boot.img=grub-pc-bin; do
    [ -e "${file%=*}" ] || host_failed "${file%=*} is missing: \`make setup\` installs it (Debian package ${file#*=})"
done
host_kernel
host_begin

root=$WORK/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,tmp,run,root,lib64}

# put FILE: gives the host a file, where it is here, and what it is linked with; of programs not what only debuggers want, which is
# most of them: the emulated host takes a second for each 3 MB that it has to unpack.
put() {
    local file
    install -D "$1" "$root$(realpath -s "$1")"
    strip --strip-debug "$root$(realpath -s "$1")" 2>/dev/null || true
    { ldd "$1" 2>/dev/null || true; } | sed -n -E 's/^[^/]*(\/[^ ]+) \(0x.*/\1/p' | while read -r file; do
        [ -e "$root$file" ] || install -D "$file" "$root$file"
    done
}
put "$(command -v busybox)"
for applet in $(busybox --list-full); do
    [ -e "$root/$applet" ] || [ "${applet##*/}" = busybox ] || ln -s "$(command -v busybox)" "$root/$applet"
done
rm -f "$root/bin/"{bash,cp} "$root/usr/bin/setpriv"
put /bin/bash
# The tests' own, which busybox has less of.
put "$(command -v setpriv)"
put /bin/cp
for file in "${FILES[@]}"; do
    [ -f "$file" ] || die "$file is no file"
    put "$file"
done
mkdir -p "$root$PWD"
kernel_modules "$root" kvm_intel tun ata_piix sd_mod
install -m 755 "$REPO_DIR/integration/emulated/intel-init.sh" "$root/init"
command_file >"$root/command"
if [ -n "$OUT" ]; then
    mkdir -p "$root$OUT"
    echo "$OUT" >"$root/out"
fi

iso=$WORK/iso
mkdir -p "$iso/boot/grub"
pack "$root" | gzip -1 >"$iso/boot/initrd"
rm -rf "$root"
cp "$KERNEL/vmlinuz" "$iso/boot/vmlinuz"
cat >"$iso/boot/grub/grub.cfg" <<END
set timeout=0
menuentry host {
    linux /boot/vmlinuz console=ttyS0,115200 panic=-1 mitigations=off tsc=reliable quiet
    initrd /boot/initrd
}
END
grub-mkrescue -o "$WORK/host.iso" "$iso" >"$WORK/log" 2>&1 || host_failed "grub-mkrescue: $(tail -n 3 "$WORK/log")"
rm -rf "$iso"
truncate -s "${OUT_MIB}M" "$WORK/disk"
gcc -shared -fPIC -O1 -o "$WORK/vmentry-irq.so" "$REPO_DIR/integration/emulated/vmentry-irq.c" -ldl

# A geometry that the size follows from: cylinders of 16 heads of 63 sectors.
cat >"$WORK/bochsrc" <<END
cpu: model=corei7_haswell_4770, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=$MEMORY, host=$MEMORY
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=disk, path=$WORK/disk, mode=flat, cylinders=0, heads=16, spt=63
ata0-slave: type=cdrom, path=$WORK/host.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$WORK/console
com2: enabled=1, mode=file, dev=$WORK/output
log: $WORK/bochs-log
display_library: term
clock: sync=none
END
# Debian's Bochs has its debugger built in: it is told to go on.
echo c >"$WORK/commands"
# It draws its screen, of use to nobody, on a terminal that it makes itself. Somebody has to read that: where it is full, after some
# seven minutes, Bochs (2.7) waits for room for ever, and the host stands still.
read_screen() {
    local screen=
    for _ in $(seq 300); do
        screen=$(sed -n 's/^Bochs connected to screen "\(.*\)"$/\1/p' "$WORK/log" 2>/dev/null || true)
        [ -z "$screen" ] || break
        sleep 0.2
    done
    [ -n "$screen" ] || return 0
    stty -F "$screen" raw -echo
    # It ends with the terminal.
    exec cat "$screen"
}
read_screen </dev/null >/dev/null 2>&1 &
# It was seen to crash, for a reason not known: where it does so is told, from its core, where gdb is there.
ulimit -c unlimited 2>/dev/null || true
host_run env -C "$WORK" TERM=xterm LD_PRELOAD="$WORK/vmentry-irq.so" bochs-bin -q -f "$WORK/bochsrc" -rc "$WORK/commands"
core=$(find "$WORK" -maxdepth 1 -name 'core*' -type f -print -quit)
if [ -n "$core" ] && command -v gdb >/dev/null; then
    gdb -batch -ex backtrace -ex "x/i \$pc" -ex 'info registers' "$(command -v bochs-bin)" "$core" >"$WORK/backtrace" 2>/dev/null </dev/null || true
    host_failed "the emulator crashed:
$(awk '/^#0/ {said = 1} said' "$WORK/backtrace" | uniq | sed 's/^/    /')"
fi

tr -d '\r' <"$WORK/console" | sed -n 's/.*LOCKSTEP-STATUS \([0-9]\{1,3\}\).*/\1/p' | tail -n 1 >"$WORK/share/status"
! grep -q LOCKSTEP-UP "$WORK/console" || touch "$WORK/share/up"
if [ -s "$WORK/share/status" ] && [ -n "$OUT" ]; then
    tar -x -C "$OUT" --no-same-owner -f "$WORK/disk" || host_failed "what the command left in $OUT did not come out whole (at most $OUT_MIB MiB)"
fi
host_result
