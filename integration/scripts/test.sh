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
times=$TARGET_DIR/test/times
rm -f "$times"*
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
# Writes the seconds of each test of a log that is being written to a file, and the log itself on.
timed() {
    local line last=$SECONDS
    while IFS= read -r line; do
        printf '%s\n' "$line"
        [[ ! $line =~ ^test\ ([^ ]+)\ \.\.\.\ (ok|FAILED)$ ]] || echo "$((SECONDS - last)) ${BASH_REMATCH[1]}" >>"$1"
        last=$SECONDS
    done
}
# took WHAT: the seconds since the beginning, and the share of the processors' time that was used in them: what is left is what
# running more side by side could save.
cpu_times() { awk '/^cpu / {print $2 + $3 + $4 + $7 + $8 + $9, $5 + $6}' /proc/stat; }
begin_times=$(cpu_times)
took() {
    echo "took $SECONDS s, $(echo "$begin_times $(cpu_times)" | awk '{busy = $3 - $1; idle = $4 - $2; printf "%.0f", 100 * busy / (busy + idle + 1)}') % of the processors: $1"
}
run_tests() { cargo test --release --locked --workspace --no-fail-fast "$@" ${TEST:+"$TEST"} --test-threads=1 --show-output; }
# KVM tests share two cores with each other: one at a time. Beside them run the playbooks, which wait most of the time, on hosts in
# containers; then the emulated Intel host, which takes one core; then what records and replays a machine of its own, which no
# other's load disturbs. The emulated AMD hosts take both cores after that.
BESIDE=(--test linux_redis --test forced_stops)
NOT_BESIDE=(--skip playbooks_ --skip redis_ --skip stress_with_)
{
    cargo test --release --locked --workspace --no-run
    failed=0
    {
        besides=0
        run_tests --test ansible -- 2>&1 | timed "$times.beside" || besides=$?
        integration/scripts/hosts-tests.sh intel || besides=$?
        run_tests "${BESIDE[@]}" -- 2>&1 | timed "$times.beside-2" || besides=$?
        exit "$besides"
    } >"$log.beside" 2>&1 &
    beside=$!
    run_tests -- "${NOT_BESIDE[@]}" 2>&1 | timed "$times" || failed=$?
    wait "$beside" || failed=$?
    cat "$log.beside"
    took "tests on this machine"
    integration/scripts/hosts-tests.sh amd || failed=$?
    took "tests on this machine and on emulated hosts"
    exit "$failed"
} >"$log" 2>&1 &
tests=$!
tail --pid="$tests" -n +1 -f "$log" | grep --line-buffered -E '^test .*(ok|FAILED|ignored)|^test result: F|^error|^SKIPPED|^running .* on an emulated' >&2 || true
wait "$tests" || status=$?

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
    cat "$times"* 2>/dev/null || true
    sed -n -E 's/^test ([^ ]+) \.\.\. ok \(([0-9]+) s\)$/\2 \1/p' "$log"
} | sort -rn | sed -n 1,10p >"$log.slowest"
if [ -s "$log.slowest" ]; then
    say "the slowest, in seconds, in $SECONDS s of all:"
    sed 's/^/    /' "$log.slowest" >&2
    sed -n 's/^took /    /p' "$log" >&2
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
