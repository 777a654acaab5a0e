#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# test-job.sh LOG NAME: runs one of test.sh's jobs: a test binary of LOG.binaries, or `documentation`. Results go to
# standard output while they come; the whole output goes to the end of LOG as one piece, each test's seconds to LOG.times, and
# what the job took to LOG.jobs.
#   TEST=name   only tests whose name contains it
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
log=$1 name=$2
whole=$log.$name

# Writes what it reads to a file, results on, and the seconds that each test took.
results() {
    local line last=$SECONDS
    while IFS= read -r line; do
        printf '%s\n' "$line" >&3
        [[ ! $line =~ ^test\ (.+)\ \.\.\.\ (ok|FAILED)$ ]] || echo "$((SECONDS - last)) ${BASH_REMATCH[1]}" >>"$log.times"
        [[ ! $line =~ ^test\  ]] || last=$SECONDS
        [[ ! $line =~ $RESULT ]] || printf '%s\n' "$line"
    done 3>"$whole"
}

# The playbooks take longest and compute little: what runs beside them must not hold them up.
[ "$name" = ansible ] || renice -n 5 "$$" >/dev/null
options=(${TEST:+"$TEST"} --test-threads=1 --show-output)
run() {
    local executable directory
    case $name in
        documentation) cargo test --release --locked --workspace --doc -- "${options[@]}" ;;
        *)
            read -r executable directory < <(sed -n "s/^$name //p" "$log.binaries") || die "no test binary is named $name"
            cd "$directory"
            "$executable" "${options[@]}" || {
                local status=$?
                # A binary that did not come to its end has no result.
                [ "$status" = 101 ] || echo "error: $name ended with status $status"
                return "$status"
            }
            ;;
    esac
}
status=0 begin=$SECONDS
run 2>&1 | results || status=$?
# What it and all that it started computed.
times >"$whole.times"
echo "$(sed -n 's/[ms]/ /g; 2p' "$whole.times" | awk '{printf "%.0f", 60 * $1 + $2 + 60 * $3 + $4}') $((SECONDS - begin)) $name" >>"$log.jobs"
rm "$whole.times"
flock "$log.lock" cat "$whole" >>"$log"
rm "$whole"
exit "$status"
