#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# check-instructions.sh BINARY...: fails if a program contains instructions whose result depends on the host.
#
# Some hosts cannot trap these in ring 3, so a program that executes them makes replicas diverge. Occurrences that are
# wanted, or never executed, are listed in instructions.allow with the reason. Needs binaries with their symbols.
set -euo pipefail

allow_file=$(dirname "${BASH_SOURCE[0]}")/instructions.allow

# Time stamps and counters, the CPU's random numbers and identity, state that may differ (XSAVE's), approximations that
# differ between models, everything VEX-encoded (a kernel that uses FXSAVE does not keep the upper halves), and TSX.
forbidden='rdtscp?|rdpmc|rdrand|rdseed|cpuid|rdpid|xgetbv|xsave[a-z0-9]*|xrstor[a-z0-9]*|tpause|umwait|x(begin|end|test)'
forbidden+='|rcp[ps]s|rsqrt[ps]s|v[a-z][a-z0-9]+'

# The forbidden instructions of a program, as "PROGRAM FUNCTION MNEMONIC".
find_forbidden() {
    objdump -d --no-show-raw-insn "$1" | awk -v program="${1##*/}" -v forbidden="^($forbidden)\$" '
        /^[0-9a-f]+ <.*>:$/ { name = $2; gsub(/[<>:]/, "", name); next }
        # "  401234:<tab>mnemonic operands"; verr and verw are not VEX.
        /^ *[0-9a-f]+:\t/ {
            split($0, part, "\t"); split(part[2], word, " ")
            if (word[1] ~ forbidden && word[1] !~ /^ver[rw]$/) print program, name, word[1]
        }' | sort | uniq
}

status=0
for binary in "$@"; do
    if [ "$(objdump -d "$binary" | grep -c '^[0-9a-f]* <')" -lt 2 ]; then
        echo "$binary: stripped, or not a program" >&2
        status=1
        continue
    fi
    while read -r found; do
        # The reason comes after a '#'.
        if ! sed -e 's/[[:space:]]*#.*//' "$allow_file" | grep -qxF "$found"; then
            echo "forbidden instruction: $found" >&2
            status=1
        fi
    done < <(find_forbidden "$binary")
done
exit $status
