#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# hosts-tests.sh: runs the tests of integration/emulated/tests.txt on emulated AMD hosts and an emulated Intel host; prints
# results as cargo test does. The tests are built before (`cargo test` has done so).
#   hosts-tests.sh [amd|intel]: of all hosts, or of one kind
#   TEST=name              only those whose name (amd::micro::clock::...) contains it; no host is started for none
#   LOCKSTEP_REQUIRE_KVM=1 a host that cannot be had here is a failure, not skipped
#   LOCKSTEP_SOAK=1        the long forms too
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

# Seconds that all tests of a host have, where AMD's take some 530 on a machine that has nothing else to do. The long forms have
# more.
declare -A BUDGET=([amd]=1200 [intel]=1500)
[ "${LOCKSTEP_SOAK:-}" != 1 ] || BUDGET=([amd]=10800 [intel]=3600)
# Tests of these that have so many seconds each share a process.
TOGETHER=(lockstep_vmm micro)
SHORT=60
declare -A EMULATOR=([amd]=qemu-system-x86_64 [intel]=bochs-bin)
# Lanes run side by side, the hosts of a lane one after the other: each takes one core.
case ${1:-all} in
    all) LANES=(amd-1 "amd-2 amd-v intel") ;;
    amd) LANES=(amd-1 "amd-2 amd-v") ;;
    intel) LANES=(intel) ;;
    *) die "no kind of host: $1" ;;
esac

# Where the tests find programs and guest too.
programs=${LOCKSTEP_BIN_DIR:-$TARGET_DIR/release}
guest=${LOCKSTEP_GUEST_DIR:-$TARGET_DIR/guest}

work=$(mktemp -d)
running=()
# Hosts are jobs, each a group of processes of its own: they end as a whole.
set -m
trap '[ ${#running[@]} = 0 ] || kill -- "${running[@]/#/-}" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

test_binaries >"$work/binaries"

# In what follows a host is one of tests.txt, and its kind what stands before the dash; `here` is its directory of files.

# tests_for HOST: label, seconds, directory, executable and name of each test that is to run there.
tests_for() {
    local host=$1 here=$work/$1 binary executable directory
    while read -r binary executable directory; do
        rows_of "$host" "$binary" >"$here/rows"
        [ -s "$here/rows" ] || continue
        "$executable" --list --format terse 2>/dev/null | sed -n 's/: test$//p' | while read -r name; do
            local form=never seconds=0 row_pattern row_seconds row_form
            while read -r row_pattern row_seconds row_form; do
                # shellcheck disable=SC2053
                [[ $name != $row_pattern ]] || { seconds=$row_seconds form=$row_form; }
            done <"$here/rows"
            [[ $form = short || ($form = soak && ${LOCKSTEP_SOAK:-} = 1) ]] || continue
            [[ ${host%-*}::$binary::$name = *"${TEST:-}"* ]] || continue
            echo "${host%-*}::$binary::$name $seconds $directory $executable $name"
        done
    done <"$work/binaries"
}
rows_of() { sed 's/#.*//' integration/emulated/tests.txt | awk -v host="$1" -v binary="$2" '$1 == host && $2 == binary {print $3, $4, $5}'; }

# calls HOST together|alone: the calls of run-tests.sh for what is on the list.
calls() {
    local host=$1 how=$2 here=$work/$1 binary label limit directory executable name
    if [ "$how" = together ]; then
        for binary in "${TOGETHER[@]}"; do
            local prefix=${host%-*}::$binary:: program=() names=()
            while read -r label limit directory executable name; do
                program=("$directory" "$executable")
                names+=("$name")
            done < <(awk -v prefix="$prefix" -v limit="$SHORT" 'index($1, prefix) == 1 && $2 == limit' "$here/list")
            [ ${#names[@]} = 0 ] || printf '%q ' run_together "$prefix" "$SHORT" "${program[@]}" "${names[@]}"
            echo
        done
    fi
    while read -r label limit directory executable name; do
        binary=${label#*::} binary=${binary%%::*}
        [[ $how = together && $limit -eq $SHORT && " ${TOGETHER[*]} " = *" $binary "* ]] ||
            printf 'run_test %q %q %q %q %q\n' "$label" "$limit" "$directory" "$executable" "$name"
    done <"$here/list"
}

# on_host HOST SECONDS together|alone: runs what is on the list on one host, started for it.
on_host() {
    local host=$1 here=$work/$1 seconds=$2 how=$3
    {
        cat integration/emulated/run-tests.sh
        # Where not all of this machine's files are.
        cut -d ' ' -f 3 "$here/list" | sort -u | sed 's/^/mkdir -p /'
        calls "$host" "$how"
    } >"$here/command"
    case ${host%-*} in
        amd)
            local virtual=()
            [ "$host" != amd-v ] || virtual=(--virtual-time --memory 9216)
            integration/scripts/amd.sh "${virtual[@]}" --time "$seconds" "$(cat "$here/command")"
            ;;
        intel)
            {
                cut -d ' ' -f 4 "$here/list" | sort -u
                # Tests of whole guests need the programs and the guest; this host has no files but those that it is given.
                ! grep -q '/integration ' "$here/list" || ls "$programs"/lockstep-{primary,debug} "$guest"/{vmlinux,general.cpio,redis.cpio}
                # A minute more until the host is up.
                ! grep -q ' programs_of_glibc_replay$' "$here/list" || { integration/scripts/debian.sh >&2 && echo "$TARGET_DIR/debian/root.img"; }
            } >"$here/files"
            # shellcheck disable=SC2046
            integration/scripts/intel.sh --time "$seconds" "$(cat "$here/command")" $(cat "$here/files")
            ;;
    esac
}

# tier HOST: all its tests, on as many hosts as it takes: the test in which one failed has failed, and the others go on.
tier() {
    local host=$1 here=$work/$1 kind=${1%-*} begin=$SECONDS how=together left passed failed stuck
    mkdir "$here"
    tests_for "$host" >"$here/list"
    [ -s "$here/list" ] || return 0
    if ! command -v "${EMULATOR[$kind]}" >/dev/null; then
        if [ "${LOCKSTEP_REQUIRE_KVM:-}" = 1 ]; then
            printf 'test %s::host ... FAILED\n    %s is missing\ntest result: FAILED. 0 passed; 1 failed\n' "$host" "${EMULATOR[$kind]}"
            return 1
        fi
        # As a test that skips itself has passed for cargo.
        printf 'SKIPPED: %s is missing: no emulated %s host\ntest result: ok. 1 passed; 0 failed\n' "${EMULATOR[$kind]}" "$host"
        return 0
    fi
    echo "running $(wc -l <"$here/list") tests on an emulated $kind host"
    : >"$here/results"
    while [ -s "$here/list" ]; do
        left=$((BUDGET[$kind] - SECONDS + begin))
        if [ "$left" -lt 60 ]; then
            sed -E 's/^([^ ]*) .*/test \1 ... FAILED/' "$here/list" | tee -a "$here/results"
            echo "    these had no time left: the $kind host has ${BUDGET[$kind]} s for all its tests"
            break
        fi
        on_host "$host" "$left" "$how" 2>&1 </dev/null | tee "$here/said" || true
        cat "$here/said" >>"$here/all"
        grep -E '^test .* \.\.\. (ok|FAILED)' "$here/said" >>"$here/results" || true
        stuck=$(awk '/^begin / {at = $2} /^test / && $2 == at {at = ""} END {print at}' "$here/said")
        if [ -n "$stuck" ]; then
            echo "test $stuck ... FAILED" | tee -a "$here/results"
            echo "    the host did not survive it, or its time was over"
        elif ! grep -q '^test ' "$here/said"; then
            echo "test $host::host ... FAILED" | tee -a "$here/results"
            break
        fi
        cut -d ' ' -f 2 "$here/results" | sort >"$here/done"
        awk 'NR == FNR {done[$1] = 1; next} !($1 in done)' "$here/done" "$here/list" >"$here/rest"
        mv "$here/rest" "$here/list"
        how=alone
    done
    passed=$(grep -cE '\.\.\. ok' "$here/results" || true)
    failed=$(grep -cE '\.\.\. FAILED' "$here/results" || true)
    echo "test result: $([ "$failed" = 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; on the emulated $kind host, in $((SECONDS - begin)) s"
    [ "$failed" = 0 ]
}

# what_failed HOST: what its failed tests said, as cargo tells it: two lanes' lines stand between each other above.
what_failed() {
    awk '/^begin / {failed = 0} /^said / {failed = 1; print "---- " $2 " stdout ----"; next} /^test .* FAILED$/ {failed = 1; print "---- " $2 " stdout ----"; next} failed' "$work/$1/all" 2>/dev/null
}

result=0
for lane in "${LANES[@]}"; do
    # Whole lines, so that two lanes' do not run into each other.
    for host in $lane; do
        ! tier "$host" || echo ok >"$work/$host.ok"
    done > >(grep --line-buffered '') 2>&1 &
    running+=($!)
done
wait "${running[@]}"
running=()
for lane in "${LANES[@]}"; do
    for host in $lane; do
        [ ! -e "$work/$host.ok" ] || continue
        result=1
        echo 'failures:'
        what_failed "$host" || true
        echo 'successes:'
    done
done
exit "$result"
