#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# test.sh: sets up what is missing and runs every test.
#   TEST=name              only tests whose name contains it
#   LOCKSTEP_REQUIRE_KVM=1 a test that cannot run here is a failure, not skipped
#   LOCKSTEP_SOAK=1        the long forms
# Some run on an emulated AMD and an emulated Intel host too (integration/emulated/tests.txt).
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$REPO_DIR/integration/scripts/setup.sh" tests
mkdir -p "$TARGET_DIR/test"
log=$TARGET_DIR/test/log.txt
: >"$log"
rm -f "$log".*
cd "$REPO_DIR"

if has_kvm && [ -z "$("$REPO_DIR/integration/guest/build.sh" packages 2>/dev/null)" ]; then
    say "guest: building what is not in target/guest yet (7 minutes at the first time)"
    "$REPO_DIR/integration/guest/build.sh" all
else
    has_kvm || say "/dev/kvm cannot be used here: what needs it is skipped"
    say "the guest is not built: what needs it is skipped"
fi

say "building (5 minutes at the first time)"
cargo build --release --locked --workspace
say "testing; the whole output goes to ${log#"$REPO_DIR"/}"
status=0
# took WHAT: the seconds since the beginning, and the share of the processors' time that was used in them: what is left is what
# running more side by side could save.
cpu_times() { awk '/^cpu / {print $2 + $3 + $4 + $7 + $8 + $9, $5 + $6}' /proc/stat; }
begin_times=$(cpu_times)
took() {
    echo "took $SECONDS s, $(echo "$begin_times $(cpu_times)" | awk '{busy = $3 - $1; idle = $4 - $2; printf "%.0f", 100 * busy / (busy + idle + 1)}') % of the processors: $1"
}
# Jobs that run side by side, each its tests one after the other. No more than there are processors: where a guest's kernel is
# interpreted a pair takes most of one, and with less of it the guest has more to do, not less. Its timers go on.
JOBS=$(nproc)
# What takes longest begins first. The emulated hosts take both processors, after all this.
FIRST=(ansible pair_disk pair_divergence linux_redis forced_stops pair_kills pair_clocks pair boot_disk pair_handover
    pair_network pair_block_devices ordinary_hosts time_travel rings)
jobs() {
    printf '%s\n' "${FIRST[@]}"
    {
        echo documentation
        cut -d ' ' -f 1 "$log.binaries"
    } | grep -vxF "$(printf '%s\n' "${FIRST[@]}")"
}
cargo test --release --locked --workspace --no-run 2>&1 | tee -a "$log" | { grep -E '^error' >&2 || true; }
test_binaries >"$log.binaries"
jobs | xargs -d '\n' -n 1 -P "$JOBS" integration/scripts/test-job.sh "$log" >&2 || status=1
took "tests on this machine" >>"$log"
integration/scripts/hosts-tests.sh 2>&1 | tee -a "$log" |
    { grep --line-buffered -E "$RESULT" >&2 || true; } || status=1
took "tests on this machine and on emulated hosts" >>"$log"

count() { grep -E '^test result:' "$log" | grep -oE "[0-9]+ $1" | awk '{sum += $1} END {print sum + 0}'; }
skipped=$(grep -cE '^SKIPPED' "$log" || true)
passed=$(($(count passed) - skipped))
failed=$(count failed)
if [ "$skipped" -gt 0 ]; then
    say "skipped, and why:"
    grep -E '^SKIPPED' "$log" | sort | uniq -c >&2
fi
if [ "$status" -ne 0 ]; then
    say "failed:"
    grep -E '^test .* FAILED$|^error' "$log" >&2 || tail -n 30 "$log" >&2
    # Whoever has only this to read has no other run to ask.
    awk -v most=12 '
        function tell(i) {
            if (n > 0) print "    " name " said last:"
            for (i = n > most ? n - most + 1 : 1; i <= n; i++) print "        " said[i]
            name = ""; n = indented = 0
        }
        /^(failures|successes):$/ || /^test result:/ {tell(); failed = $1 == "failures:"; next}
        # On an emulated host what a test said is indented and follows its result.
        /^test .* \.\.\. FAILED$/ {tell(); name = $2; indented = 1; next}
        indented && !/^    / {tell()}
        /^---- .* stdout ----$/ {tell(); if (failed) name = $2; next}
        name != "" && NF && !/^ *([0-9]+: |at \/|at \.\/|Stack backtrace:)/ {said[++n] = $0}
        END {tell()}' "$log" >&2
    [ "$failed" -gt 0 ] || failed=1
fi
if [ "$((passed + failed + skipped))" -eq 0 ]; then
    say "no test's name contains '${TEST:-}'"
    status=1
fi
{
    cat "$log.times" 2>/dev/null || true
    sed -n -E 's/^test ([^ ]+) \.\.\. ok \(([0-9]+) s\)$/\2 \1/p' "$log"
} | sort -rn | sed -n 1,10p >"$log.slowest"
if [ -s "$log.slowest" ]; then
    say "the slowest, in seconds, in $SECONDS s of all:"
    sed 's/^/    /' "$log.slowest" >&2
    sed -n 's/^took /    /p' "$log" >&2
    say "the jobs that computed most: seconds of a processor, seconds:"
    sort -rn "$log.jobs" | sed -n '1,10s/^/    /p' >&2
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
