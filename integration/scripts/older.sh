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

programs=(lockstep-primary lockstep-backup lockstep-debug)
newest() { [ "$(find "$older/deb" -name "lockstep_${LOCKSTEP_VERSION}_*.deb" -newer "$1" 2>/dev/null)" ]; }
for program in "${programs[@]}"; do
    newest "$TARGET_DIR/release/$program" || rm -rf "$older/release"
done
# Only the programs' own few lines are told what they are (proto::program): all else is compiled already.
if [ ! -d "$older/release" ]; then
    rm -rf "$older/partial"
    mkdir -p "$older/partial/deps"
    cp -a "$TARGET_DIR"/release/{build,.fingerprint} "$older/partial"
    find "$TARGET_DIR/release/deps" -maxdepth 1 -name '*.d' -exec cp -a -t "$older/partial/deps" {} +
    # Cargo replaces them, if need be, and never writes into one.
    find "$TARGET_DIR/release/deps" -maxdepth 1 \( -name '*.rlib' -o -name '*.rmeta' -o -name '*.so' \) -exec cp -al -t "$older/partial/deps" {} +
    mv "$older/partial" "$older/release"
fi
export CARGO_TARGET_DIR=$older
# Whose own lines are many.
quickly=(--config profile.release.package.lockstep-debugger.opt-level=1 --config profile.release.package.lockstep-debugger.debug=false)
cargo build --quiet --release --locked --workspace "${quickly[@]}" "${programs[@]/#/--bin=}"
"$scripts/package.sh"
