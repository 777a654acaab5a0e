#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# man.sh: writes what packages hold of each program: its manual pages, and its completions under the names that shells look for.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

completions=$TARGET_DIR/completions
mkdir -p "$completions"/{bash,fish,zsh}
for name in lockstep-primary lockstep-backup lockstep-debug; do
    program=$TARGET_DIR/release/$name
    "$program" man "$TARGET_DIR/man"
    "$program" completions bash >"$completions/bash/$name"
    "$program" completions fish >"$completions/fish/$name.fish"
    "$program" completions zsh >"$completions/zsh/_$name"
done
say "manual pages are in target/man, completions in target/completions"
