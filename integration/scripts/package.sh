#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# package.sh: makes the Debian package of the programs that are built, unless it is newer than all that goes into it.
#   LOCKSTEP_VERSION=1.2~3   its version, as at the build
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$scripts/lib.sh"

package=$TARGET_DIR/deb/lockstep_${LOCKSTEP_VERSION}_amd64.deb
inputs=("$TARGET_DIR"/release/lockstep-{primary,backup,debug} "$scripts"/{deb,man}.sh "$REPO_DIR"/deploy/{debian,machine.toml,prometheus,lockstep@.service}
    "$REPO_DIR"/{README.md,ARCHITECTURE.md,docs})
# The package names the commit, and has its date.
commits=$(git -C "$REPO_DIR" rev-parse --path-format=absolute --git-path logs/HEAD)
[ ! -f "$commits" ] || inputs+=("$commits")
if [ ! -f "$package" ] || [ -n "$(find "${inputs[@]}" -newer "$package" -print -quit)" ]; then
    "$scripts/man.sh" 2>/dev/null
    "$scripts/deb.sh"
fi
