#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Writes an uncompressed "newc" cpio archive to standard output, from a list on standard input:
#
#   dir PATH MODE | file PATH MODE SOURCE | link PATH TARGET | node PATH MODE MAJOR MINOR
#
# Everything belongs to root and has one date, so the same input gives the same bytes; device nodes need no privilege.
set -euo pipefail
export LC_ALL=C

inode=0
offset=0

pad() {
    local bytes=$(((4 - offset % 4) % 4))
    [ "$bytes" -eq 0 ] || head -c "$bytes" /dev/zero
    offset=$((offset + bytes))
}

# entry PATH MODE SIZE [MAJOR MINOR]: the header and the name.
entry() {
    local path=${1#/} mode=$2 size=$3 major=${4:-0} minor=${5:-0}
    inode=$((inode + 1))
    # magic, inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name length, checksum
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' "$inode" "$mode" 0 0 1 "$SOURCE_DATE_EPOCH" \
        "$size" 0 0 "$major" "$minor" $((${#path} + 1)) 0
    printf '%s\0' "$path"
    offset=$((offset + 110 + ${#path} + 1))
    pad
}

while read -r kind path a b c; do
    case $kind in
        dir) entry "$path" $((0040000 | 0$a)) 0 ;;
        file)
            size=$(stat -L -c %s "$b")
            entry "$path" $((0100000 | 0$a)) "$size"
            cat "$b"
            offset=$((offset + size))
            pad
            ;;
        link)
            entry "$path" $((0120777)) ${#a}
            printf '%s' "$a"
            offset=$((offset + ${#a}))
            pad
            ;;
        node) entry "$path" $((0020000 | 0$a)) 0 "$b" "$c" ;;
        '' | '#'*) ;;
        *) echo "mkcpio.sh: unknown kind: $kind" >&2 && exit 1 ;;
    esac
done
inode=-1
entry 'TRAILER!!!' 0 0
