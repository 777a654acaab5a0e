#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
# The first program of the Debian guest: does what is typed, `load COUNT` above all, and says what came of it.
#
# What it does between two commands starts no program: each one of glibc's runs CPUID and RDTSC, which no host with
# software virtualization can trap.
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
# The guest's kernel saves no registers of AVX, and CPUID in user code tells of the host's all the same.
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-BMI2,-ERMS,-FSRM,-RTM,-MOVBE,-XSAVE,-XSAVEC
export OPENSSL_ia32cap=0:0
mount -t proc none /proc
mount -t tmpfs none /tmp
stty -echo

# Programs of several kinds; the last line of each round is the same in every round.
round() {
    perl -e 'my %h; $h{$_ % 97} .= $_ for 1 .. 4000; print "$_ $h{$_}\n" for sort keys %h' >"/var/tmp/text$1"
    gzip -c "/var/tmp/text$1" >"/var/tmp/text$1.gz"
    dpkg-query -W -f '${Package} ${Version}\n' | sort >"/var/tmp/packages$1"
    sum=$({ gzip -dc "/var/tmp/text$1.gz"; cat "/var/tmp/packages$1"; sort -r "/var/tmp/text$1"; } | openssl dgst -sha256 -r | cut -c 1-16)
    sync
    echo "ROUND $1 $sum"
}

echo DEBIAN-READY
while read -r command count; do
    case $command in
        load)
            done=0
            while [ "$done" -lt "$count" ]; do
                round "$done"
                done=$((done + 1))
            done
            echo "LOAD-DONE $count"
            ;;
        # What programs of glibc do when somebody works with them. Their RDTSC is the machine's where the host can trap it.
        glibc)
            done=0
            while [ "$done" -lt "$count" ]; do
                bash -c 'for i in {1..200}; do a[i]=$((i * RANDOM)); done; echo "BASH ${#a[@]} $SECONDS"'
                python3 -c 'import hashlib, random, time; t = time.monotonic_ns(); print("PYTHON", hashlib.sha256(bytes(random.randbytes(4096))).hexdigest()[:16], t)'
                seq 1 3000 | shuf | sort -n | sha256sum | cut -c 1-16
                done=$((done + 1))
            done
            openssl speed -seconds 2 -bytes 1024 sha256 2>&1 | tail -n 1
            echo "GLIBC-DONE $count"
            ;;
        # More memory than there is, touched here and there: reclaim and swap (on the second disk) go by the page tables'
        # accessed and dirty bits. What was written is counted at the end.
        pressure)
            read -r major minor _ <<END
$(grep -w vdb /proc/partitions)
END
            [ -b /dev/vdb ] || mknod -m 600 /dev/vdb b "$major" "$minor"
            mkswap -q /dev/vdb && swapon /dev/vdb
            python3 -c '
import random, sys, time
memory, pages, touched = bytearray(160 << 20), 40960, 0
end = time.monotonic() + int(sys.argv[1])
while time.monotonic() < end:
    for page in random.choices(range(pages), k=64):
        memory[page << 12] = memory[page << 12] + 1 & 255
    touched += 64
print("PRESSURE", (sum(memory[::4096]) - touched) % 256, touched)
' "$count"
            # In sectors: the kernel does not count its pages (CONFIG_VM_EVENT_COUNTERS).
            read -r _ _ _ _ _ in _ _ _ out _ <<END
$(grep -w vdb /proc/diskstats)
END
            echo "SWAPPED $((out / 8)) $((in / 8))"
            swapoff /dev/vdb
            echo "PRESSURE-DONE $count"
            ;;
        # Makes replicas differ where RDTSC cannot be trapped: the programs above often do so, but not surely.
        tsc) rdtsc3 "$count" ;;
        ask) echo "HERE $count" ;;
    esac
done
