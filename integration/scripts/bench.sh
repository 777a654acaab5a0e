#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# bench.sh: measures; prints a table and writes target/bench/results.json. The build is done before (`make bench`).
#   QUICK=1        five minutes and not twenty
#   ONLY=a,b       only these sections: boot snapshot loop compute memwrite redis idle codec pair-compute pair-redis
#                  pair-failover pair-join; pair: all of a pair's; memory: half an hour (LOCKSTEP_MEMORY_MINUTES),
#                  only where it is named
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

results=$TARGET_DIR/bench
mkdir -p "$results"
status=0
rm -f "$results/codec.txt"
case ",${ONLY:-codec}," in
    *,codec,*)
        say "bench: codec"
        milliseconds=1000
        [ "${QUICK:-}" != 1 ] || milliseconds=300
        LOCKSTEP_BENCH_MS=$milliseconds cargo bench -q --locked -p lockstep-logcodec --bench codec >"$results/codec.txt" || status=1
        ;;
esac
"$TARGET_DIR/release/lockstep-bench" || status=1
say "results are in ${results#"$REPO_DIR"/}/results.json"
exit "$status"
