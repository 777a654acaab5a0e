# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Runs single tests, on an emulated host: hosts-tests.sh gives the calls of run_test.
set -m

# Prints a test's output, of which no line can be taken for a result of ours, and what it skipped.
output_of_test() {
    sed 's/^/    /' "$1"
    grep -o 'SKIPPED: .*' "$1" || true
}

# Where the threads of a process are.
threads_of() {
    local task
    for task in "/proc/$1/task"/*; do
        echo "    thread $(cat "$task/comm") is in $(cat "$task/wchan" 2>/dev/null) ($(awk '/^State/ {print $3}' "$task/status")); kernel stack:"
        sed 's/^/        /' "$task/stack" 2>/dev/null
    done
}

# run_test LABEL SECONDS DIRECTORY BINARY TEST: prints `begin LABEL`, and `test LABEL ... ok` or FAILED with what the test said.
run_test() {
    local label=$1 seconds=$2 directory=$3 binary=$4 test=$5 output=/tmp/test-output status=0 begin watch pid
    echo "begin $label"
    begin=$(date +%s)
    rm -f /tmp/time-over
    (cd "$directory" && CARGO_MANIFEST_DIR=$directory exec "$binary" --exact "$test" --test-threads=1 --nocapture) >"$output" 2>&1 </dev/null &
    pid=$!
    (
        sleep "$seconds"
        threads_of "$pid" >/tmp/threads 2>&1
        mv /tmp/threads /tmp/time-over
        kill -KILL -- "-$pid"
        # A process that not even this ends is stuck in the host's kernel: the host is of no more use.
        sleep 30
        echo "test $label ... FAILED"
        echo "    it did not end within $seconds s, and cannot be killed; when its time was over:"
        cat /tmp/time-over
        output_of_test "$output"
        kill -KILL $$
    ) &
    watch=$!
    wait "$pid" || status=$?
    kill -KILL -- "-$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
    if [ -e /tmp/time-over ]; then
        echo "test $label ... FAILED"
        echo "    it did not end within $seconds s; when its time was over:"
        cat /tmp/time-over
    elif [ "$status" = 0 ]; then
        echo "test $label ... ok ($(($(date +%s) - begin)) s)"
    else
        echo "test $label ... FAILED"
        echo "    status $status after $(($(date +%s) - begin)) s"
    fi
    output_of_test "$output"
} 2>/dev/null
