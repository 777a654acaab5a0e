# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Runs tests, on an emulated host: hosts-tests.sh gives the calls of run_test and run_together.
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

# run_together PREFIX SECONDS DIRECTORY BINARY TEST...: runs many, in their order, in one process, which finds out once what the host
# can do, where run_test's find it out each. Prints what run_test prints, but that what a failed one said comes at the end, after
# `said LABEL`. The test in which the process ends, or that does not end within SECONDS, has failed, and those behind it have a
# process each. A test's label is PREFIX and its name.
run_together() {
    local prefix=$1 seconds=$2 directory=$3 binary=$4 output=/tmp/test-output lines=/tmp/test-lines line pid status=0 last=$SECONDS
    local failed=() test
    shift 4
    : >"$output"
    # Not every host has the /dev/fd that a process substitution needs.
    rm -f "$lines"
    mkfifo "$lines"
    (cd "$directory" && CARGO_MANIFEST_DIR=$directory exec "$binary" --exact "$@" --test-threads=1 --show-output) >"$lines" 2>&1 </dev/null &
    pid=$!
    echo "begin $prefix$1"
    while IFS= read -r -t "$seconds" line; do
        printf '%s\n' "$line" >>"$output"
        [[ $# -gt 0 && $line =~ ^test\ ([^ ]+)\ \.\.\.\ (ok|FAILED)$ && ${BASH_REMATCH[1]} = "$1" ]] || continue
        if [ "${BASH_REMATCH[2]}" = ok ]; then
            echo "test $prefix$1 ... ok ($((SECONDS - last)) s)"
        else
            echo "test $prefix$1 ... FAILED"
            failed+=("$1")
        fi
        last=$SECONDS
        shift
        [ $# = 0 ] || echo "begin $prefix$1"
    done <"$lines"
    if [ $# -gt 0 ]; then
        threads_of "$pid" >/tmp/threads 2>&1
        kill -KILL -- "-$pid"
        wait "$pid" || status=$?
        echo "test $prefix$1 ... FAILED"
        echo "    it did not end within $seconds s, or ended its process (status $status), which it shared with other tests; where it was:"
        cat /tmp/threads
        output_of_test "$output"
        shift
    else
        wait "$pid"
        grep -o 'SKIPPED: .*' "$output" || true
    fi
    for test in "${failed[@]}"; do
        echo "said $prefix$test"
        awk -v head="---- $test stdout ----" '/^---- .* stdout ----$/ {own = 0} own {print "    " $0} $0 == head {own = 1}' "$output"
    done
    for test; do
        run_test "$prefix$test" "$seconds" "$directory" "$binary" "$test"
    done
} 2>/dev/null
