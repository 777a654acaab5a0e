#!/bin/bash
# Debian's package of a kernel's debugging symbols (linux-image-...-dbg) has a directory /usr/lib/debug/.build-id, where gdb looks for the
# symbols of a file that was stripped, by the build id that both have. Other -dbg and -dbgsym packages have their files there. This one has
# the vDSOs' there, and the kernel's not: it is in /usr/lib/debug/boot and, the same file by another name, in /usr/lib/debug/lib/modules.
# So a debugger finds no symbols for a kernel of which it knows no more than the build id, though the right file is installed; it has to
# be named, or looked for in these places.
#
# Seen on 2026-12-01 with Debian 12's linux-image-6.1.0-57-cloud-amd64-dbg 6.1.192-3 and gdb 13.1.
#     by build id: vdso/vdso32.so vdso/vdso64.so
#     kernels: boot/vmlinux-6.1.0-57-cloud-amd64 lib/modules/6.1.0-57-cloud-amd64/vmlinux
#     gdb on the stripped kernel: no symbols
#     gdb on the kernel by its name: start_kernel
set -euo pipefail
package=linux-image-6.1.0-57-cloud-amd64-dbg
version=6.1.192-3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download "$package=$version" 2>/dev/null
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -x --wildcards './usr/lib/debug/boot/*' './usr/lib/debug/.build-id/*' \
    './usr/lib/debug/lib/modules/*/vmlinux' './usr/lib/debug/lib/modules/*/vdso/*'

cd usr/lib/debug
by_id=$(find .build-id -name '*.debug' -exec readlink {} + | sed -E 's|.*/lib/modules/[^/]*/||' | sort | paste -s -d ' ')
kernels=$(find boot lib -name 'vmlinux*' | sort | paste -s -d ' ')
kernel=$(find boot -name 'vmlinux-*')
# All that a stripped kernel has: its build id is in it.
objcopy --strip-all "$kernel" "$dir/stripped"
asked() { gdb -nx -q -batch -ex "set debug-file-directory $dir/usr/lib/debug" -ex "file $1" -ex 'info address start_kernel' 2>&1 || true; }
stripped=$(asked "$dir/stripped")
[[ $stripped != *'No symbol'* ]] || stripped='no symbols'
named=$(asked "$dir/usr/lib/debug/$kernel")
[[ $named != *'Symbol "start_kernel" is a function'* ]] || named=start_kernel
echo "by build id: $by_id"
echo "kernels: $kernels"
echo "gdb on the stripped kernel: $stripped"
echo "gdb on the kernel by its name: $named"
if [ "$by_id" = 'vdso/vdso32.so vdso/vdso64.so' ] && [ "$stripped" = 'no symbols' ] && [ "$named" = start_kernel ]; then
    echo "as described"
else
    echo "CHANGED"
    exit 1
fi
