#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# older.sh: makes target/older/deb/lockstep_VERSION_amd64.deb, an older package of the same source, to upgrade from:
#   LOCKSTEP_VERSION=0.1~older      its version
#   LOCKSTEP_NEWEST_REVISION=1      the newest revision of the device model that it knows
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$scripts/lib.sh"
older=$TARGET_DIR/older
mkdir -p "$older"
exec 9>"$older/lock"
flock 9
cd "$REPO_DIR"

# What others wrote is compiled already, if the programs are.
if [ ! -d "$older/release" ] && [ -d "$TARGET_DIR/release/deps" ]; then
    mkdir -p "$older/partial/deps"
    cp -a "$TARGET_DIR"/release/{build,.fingerprint} "$older/partial"
    find "$TARGET_DIR/release/deps" -maxdepth 1 \( -name '*.rlib' -o -name '*.rmeta' -o -name '*.so' -o -name '*.d' \) \
        ! -name '*lockstep*' -exec cp -a -t "$older/partial/deps" {} +
    rm -rf "$older"/partial/{build,.fingerprint}/lockstep-*
    mv "$older/partial" "$older/release"
fi
export CARGO_TARGET_DIR=$older
# Tests beside it go first.
nice -n 19 cargo build --quiet --release --locked --workspace --bin lockstep-primary --bin lockstep-backup --bin lockstep-debug
"$scripts/package.sh"
