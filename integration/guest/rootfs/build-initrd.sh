#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Builds general.cpio (busybox, init, the test programs) and redis.cpio (the same and Redis).
# shellcheck source-path=SCRIPTDIR/..
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$GUEST_DIR/sources.sh"

ROOTFS_DIR=$GUEST_DIR/rootfs
PROGRAMS_DIR=$GUEST_DIR/programs

# The kernel's headers are the system's; musl's own come first.
KERNEL_HEADERS="-idirafter /usr/include -idirafter /usr/include/$(gcc -print-multiarch)"
# Paths of the build machine must not get into the binaries.
USER_CFLAGS="$KERNEL_HEADERS -ffile-prefix-map=$REPO_DIR=."
# SC2206: these are lists of flags.
# shellcheck disable=SC2206
OUR_CFLAGS=(-std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -static $USER_CFLAGS)

compiler_version() { gcc --version | head -n 1; dpkg-query -W musl-tools musl-dev; }

build_busybox() {
    local to=$1 tree=$WORK_DIR/busybox symbols
    local make=(make -s -C "$tree" CC=musl-gcc HOSTCC=gcc "CONFIG_EXTRA_CFLAGS=$USER_CFLAGS")
    say "building busybox"
    unpack_source busybox "$tree"
    "${make[@]}" allnoconfig >/dev/null
    # Unlike the kernel's, busybox's Kconfig takes the first value of a symbol, so allnoconfig's must go.
    symbols=$(sed -n -E 's/^(CONFIG_[A-Za-z0-9_]+)=.*/\1/p' "$ROOTFS_DIR/busybox.fragment")
    grep -vwF "$symbols" "$tree/.config" >"$tree/.config.new"
    sed -E 's/^(CONFIG_[A-Za-z0-9_]+)=n$/# \1 is not set/' "$ROOTFS_DIR/busybox.fragment" >>"$tree/.config.new"
    mv "$tree/.config.new" "$tree/.config"
    # New questions get their default. (A plain `yes` would die of a closed pipe.)
    "${make[@]}" oldconfig < <(yes '' 2>/dev/null) >/dev/null
    check_config "$ROOTFS_DIR/busybox.fragment" "$tree/.config"
    "${make[@]}" -j"$JOBS" busybox >"$tree/build.log" 2>&1 || { tail -n 30 "$tree/build.log"; return 1; }
    cp "$tree/busybox_unstripped" "$to/busybox"
    rm -rf "$tree"
}

build_redis() {
    local to=$1 tree=$WORK_DIR/redis
    say "building Redis"
    unpack_source redis "$tree"
    # USE_PROCESSOR_CLOCK stays undefined: Redis would read the TSC. libc's malloc: jemalloc does not build with musl-gcc.
    if ! make -s -C "$tree/src" -j"$JOBS" CC=musl-gcc MALLOC=libc BUILD_TLS=no USE_SYSTEMD=no OPTIMIZATION=-O2 \
        CFLAGS="$USER_CFLAGS" LDFLAGS=-static redis-server redis-cli >"$tree/build.log" 2>&1; then
        tail -n 30 "$tree/build.log"
        return 1
    fi
    cp "$tree/src/redis-server" "$tree/src/redis-cli" "$to"
    rm -rf "$tree"
}

build_programs() {
    local to=$1 source
    say "building init and the test programs"
    musl-gcc "${OUR_CFLAGS[@]}" -o "$to/init" "$ROOTFS_DIR"/init/*.c
    for source in "$PROGRAMS_DIR"/*.c; do
        musl-gcc "${OUR_CFLAGS[@]}" -o "$to/$(basename "$source" .c)" "$source" -lm
    done
}

# The list for mkcpio.sh, with stripped programs from $1.
list_files() {
    local stripped=$1 file
    shift
    for file in bin data dev etc proc run sbin sys tmp; do
        echo "dir /$file 755"
    done
    # What the kernel gives to init as its standard input and output, before devtmpfs is mounted.
    echo "node /dev/console 600 5 1"
    # The other applets need no links: the shell finds them by itself, and each link costs time at boot.
    echo "link /bin/sh busybox"
    for file in halt poweroff reboot; do
        echo "link /sbin/$file ../bin/busybox"
    done
    (cd "$ROOTFS_DIR/files" && find . -type f -perm -u+x -printf '%P 755\n' -o -type f -printf '%P 644\n') | sort |
        while read -r path mode; do
            echo "file /$path $mode $ROOTFS_DIR/files/$path"
        done
    echo "file /init 755 $stripped/init"
    for file in "$@"; do
        [ "$file" = init ] || echo "file /bin/$file 755 $stripped/$file"
    done
}

# build_cpio NAME BINARY... DIRECTORY
build_cpio() {
    local name=$1 to=${*: -1} binaries=("${@:2:$#-2}") stripped=$WORK_DIR/stripped-$1 binary names
    "$GUEST_DIR/check-instructions.sh" "${binaries[@]}" || die "$name.cpio: see instructions.allow"
    rm -rf "$stripped"
    mkdir -p "$stripped"
    for binary in "${binaries[@]}"; do
        strip -o "$stripped/${binary##*/}" "$binary"
    done
    mapfile -t names < <(printf '%s\n' "${binaries[@]##*/}" | sort)
    list_files "$stripped" "${names[@]}" | bash "$ROOTFS_DIR/mkcpio.sh" >"$to/$name.cpio"
    # The programs with their symbols, for gdb.
    mkdir "$to/programs"
    cp "${binaries[@]}" "$to/programs"
    rm -rf "$stripped"
}

cpio_key() {
    local name=$1 files
    shift
    mapfile -t files < <(find "$ROOTFS_DIR/files" -type f | sort)
    # The binaries' paths name the builds they come from.
    printf '%s\n' "${@#"$CACHE_DIR"/}" | input_hash "$name" "$ROOTFS_DIR"/{build-initrd.sh,mkcpio.sh} \
        "$GUEST_DIR"/{check-instructions.sh,instructions.allow} "${files[@]}"
}

fetch_source busybox dsc busybox
fetch_source redis dsc redis

busybox=$(cached "$({ cat "$SOURCES_DIR/busybox/MANIFEST"; compiler_version; } |
    input_hash busybox "$ROOTFS_DIR"/{build-initrd.sh,busybox.fragment})" build_busybox)
redis=$(cached "$({ cat "$SOURCES_DIR/redis/MANIFEST"; compiler_version; } |
    input_hash redis "$ROOTFS_DIR/build-initrd.sh")" build_redis)
programs=$(cached "$(compiler_version |
    input_hash programs "$ROOTFS_DIR/build-initrd.sh" "$ROOTFS_DIR"/init/*.[ch] "$PROGRAMS_DIR"/*.c)" build_programs)

general=("$busybox/busybox" "$programs"/*)
with_redis=("$redis"/* "${general[@]}")
built=$(cached "$(cpio_key general "${general[@]}")" build_cpio general "${general[@]}")
publish "$built/general.cpio"
built=$(cached "$(cpio_key redis-cpio "${with_redis[@]}")" build_cpio redis "${with_redis[@]}")
publish "$built/redis.cpio"
