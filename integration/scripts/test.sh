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
run_tests() { cargo test --release --locked --workspace --no-fail-fast "$@" ${TEST:+"$TEST"} --test-threads=1 --show-output; }
# KVM tests share two cores and network names with nobody: one at a time. Only the playbooks run beside them, which wait most of
# the time, on hosts in containers. What this machine's KVM cannot show runs on emulated hosts after that.
BESIDE=ansible
{
    cargo test --release --locked --workspace --no-run
    failed=0
    run_tests --test "$BESIDE" -- >"$log.$BESIDE" 2>&1 &
    beside=$!
    run_tests -- --skip playbooks_ || failed=$?
    wait "$beside" || failed=$?
    cat "$log.$BESIDE"
    integration/scripts/hosts-tests.sh || failed=$?
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
    [ "$failed" -gt 0 ] || failed=1
fi
if [ "$((passed + failed + skipped))" -eq 0 ]; then
    say "no test's name contains '${TEST:-}'"
    status=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
