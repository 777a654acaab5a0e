# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Shared by the scripts that run emulated hosts (amd.sh, intel.sh): arguments, the host's kernel, the emulator's life.
#
# Exit status of both: the command's own; 124 when its time is over, 125 when the host failed (it did not come up, stood
# still or ended without the command's status), 128 + N when the script itself got signal N.

EMULATED_DIR=$TARGET_DIR/emulated
FAILED=125
TIME_OVER=124

# host_failed TEXT: the host's fault, not the command's.
host_failed() {
    printf 'lockstep: error: %s\n' "$*" >&2
    exit "$FAILED"
}

# arguments USAGE MEMORY "$@": sets SECONDS_LIMIT, MEMORY, OUT, COMMAND and FILES (what follows the command).
# shellcheck disable=SC2034
arguments() {
    local usage=$1
    SECONDS_LIMIT=600 MEMORY=$2 OUT=
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
            --time) SECONDS_LIMIT=${2:?$usage} && shift 2 ;;
            --memory) MEMORY=${2:?$usage} && shift 2 ;;
            --out) OUT=${2:?$usage} && shift 2 ;;
            --) shift && break ;;
            -*) die "$1: $usage" ;;
            *) break ;;
        esac
    done
    COMMAND=${1:-}
    [ -n "$COMMAND" ] || die "which command? $usage"
    FILES=("${@:2}")
    if [ -n "$OUT" ]; then
        mkdir -p "$OUT" || die "--out: $OUT cannot be made"
        OUT=$(realpath "$OUT")
    fi
}

# needs PROGRAM PACKAGE: ends where a program is missing.
needs() {
    PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ||
        host_failed "$1 is missing: \`make setup\` installs it (Debian package $2)"
}

# The newest version of Debian's kernel of those that are here; nothing if there is none.
cached_kernel() {
    find "$EMULATED_DIR/kernels" -mindepth 2 -maxdepth 2 -name vmlinuz -printf '%h\n' 2>/dev/null | sort -V | tail -n 1
}

# What hosts may need of a kernel's modules: the rest (drivers of hardware, above all) is most of 400 MB.
KERNEL_PARTS=(arch/x86/kvm block crypto drivers/ata drivers/block drivers/char drivers/crypto/ccp drivers/md drivers/net/'*.ko*'
    drivers/scsi/'s[cd]*_mod.ko*' drivers/virtio fs lib mm net virt)

# Downloads the package of Debian's kernel into the current directory.
download_kernel() {
    local package
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | sed -n 1p)
    if [ -n "$package" ] && apt-get -qq download "$package" 2>apt-errors; then
        return
    fi
    # The lists are missing, or older than what the mirror has.
    can_root && as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    return 1
}

# Fetches the newest kernel of this Debian into its directory.
fetch_kernel() {
    local kernels=$EMULATED_DIR/kernels name
    local partial=$kernels/partial
    needs apt-get apt
    say "fetching Debian's kernel for emulated hosts (70 MB, once)"
    rm -rf "$partial"
    mkdir -p "$partial"
    (cd "$partial" && retry download_kernel) ||
        host_failed "Debian's kernel cannot be fetched: $(tail -n 1 "$partial/apt-errors" 2>/dev/null || echo 'apt knows no linux-image-amd64'). Is a mirror in reach? It is needed once only: it is kept in $kernels"
    dpkg-deb --fsys-tarfile "$partial"/*.deb | tar -x -C "$partial" --wildcards './boot/vmlinuz-*' './lib/modules/*/modules.*' \
        "${KERNEL_PARTS[@]/#/./lib/modules/*/kernel/}"
    name=$(basename "$partial"/lib/modules/*)
    mv "$partial/boot/vmlinuz-$name" "$partial/vmlinuz"
    rm -rf "${partial:?}"/{*.deb,boot,apt-errors}
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$partial" "$name"
    rm -rf "${kernels:?}/$name"
    mv "$partial" "$kernels/$name"
}

# Sets KERNEL to the directory of a kernel (vmlinuz, lib/modules/VERSION) and KERNEL_VERSION. One that is here is taken
# without asking a mirror.
host_kernel() {
    mkdir -p "$EMULATED_DIR/kernels"
    KERNEL=$(cached_kernel)
    if [ -z "$KERNEL" ]; then
        exec {lock}>"$EMULATED_DIR/kernels/lock"
        flock "$lock"
        KERNEL=$(cached_kernel)
        [ -n "$KERNEL" ] || fetch_kernel
        exec {lock}>&-
        KERNEL=$(cached_kernel)
    fi
    KERNEL_VERSION=$(basename "$KERNEL")
}

# Copies the named modules, with those that they need, to where an initramfs has them.
kernel_modules() {
    local root=$1 into=$1/lib/modules/$KERNEL_VERSION
    shift
    mkdir -p "$into"
    PATH=$PATH:/usr/sbin:/sbin modprobe -S "$KERNEL_VERSION" -d "$KERNEL" -a --show-depends "$@" | sed -n 's/^insmod \([^ ]*\).*/\1/p' |
        sort -u | xargs cp -t "$into" || host_failed "$KERNEL lacks a module of $*: remove it, and it is fetched again"
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$root" "$KERNEL_VERSION" 2>/dev/null
}

# pack ROOT: an initramfs of a directory, on standard output.
pack() { (cd "$1" && find . | cpio -o -H newc --quiet); }

# Where this run keeps its files, and what ends with the script, whatever ends it.
host_begin() {
    local run
    mkdir -p "$EMULATED_DIR"
    # What a run left that was killed.
    for run in "$EMULATED_DIR"/run.*; do
        run=${run##*/run.}
        [ ! -d "$EMULATED_DIR/run.$run" ] || [ -d "/proc/$run" ] || rm -rf "$EMULATED_DIR/run.$run"
    done
    WORK=$EMULATED_DIR/run.$$
    rm -rf "$WORK"
    mkdir "$WORK"
    EMULATOR='' READER=''
    trap host_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    mkdir "$WORK/share"
    touch "$WORK/console" "$WORK/output"
}

host_end() {
    trap '' INT TERM HUP
    if [ -n "$EMULATOR" ]; then
        kill "$EMULATOR" 2>/dev/null || true
        wait "$EMULATOR" 2>/dev/null || true
    fi
    if [ -n "$READER" ]; then
        wait "$READER" 2>/dev/null || true
    fi
    rm -rf "$WORK"
}

# What the command is given: the variables that tests and builds are told things by, and the directory.
command_file() {
    export -p | grep -E '^declare -x (LOCKSTEP_|RUST_|CARGO_|CI=|KEEP=|TEST=)[^"]*"[^"]*"$' || true
    printf 'cd %q || exit 127\n%s\n' "$PWD" "$COMMAND"
}

# host_run COMMAND...: runs the emulator until it ends, with what the command prints (WORK/output) on standard output.
# Not even SIGKILL of this script leaves it running.
host_run() {
    local status=0
    setpriv --pdeathsig KILL timeout --kill-after 5 "$SECONDS_LIMIT" setpriv --pdeathsig KILL "$@" </dev/null >"$WORK/log" 2>&1 &
    EMULATOR=$!
    tail --pid="$EMULATOR" -s 0.2 -c +1 -f "$WORK/output" &
    READER=$!
    wait "$EMULATOR" || status=$?
    EMULATOR=
    wait "$READER" || true
    READER=
    EMULATOR_STATUS=$status
}

# The last lines that the host's kernel said.
last_words() { tr -d '\r' <"$WORK/console" | sed -e 's/\x1b[^a-zA-Z]*[a-zA-Z]//g' | grep . | tail -n 8 | sed 's/^/    /'; }

# host_result: exits as the command did, or says what became of the host.
host_result() {
    if [ -s "$WORK/share/status" ]; then
        exit "$(cat "$WORK/share/status")"
    fi
    if grep -qE 'soft lockup|Kernel panic|rcu.*stall|blocked for more than' "$WORK/console"; then
        host_failed "the emulated host stood still; its kernel said:
$(grep -aE -m 1 -A 40 'soft lockup|Kernel panic|rcu.*stall|blocked for more than' "$WORK/console" | tr -d '\r' | sed 's/^/    /')"
    fi
    case $EMULATOR_STATUS in
        "$TIME_OVER" | 137)
            if [ ! -e "$WORK/share/up" ]; then
                host_failed "the emulated host had not come up after $SECONDS_LIMIT s (--time); it last said:
$(last_words)"
            fi
            printf 'lockstep: error: the command had not ended after %s s on the emulated host (--time)\n' "$SECONDS_LIMIT" >&2
            exit "$TIME_OVER"
            ;;
        0) ;;
        *) host_failed "the emulator failed: $(tail -n 3 "$WORK/log")" ;;
    esac
    host_failed "the emulated host ended without the command's status; it last said:
$(last_words)"
}
