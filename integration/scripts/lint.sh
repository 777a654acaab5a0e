#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# lint.sh: formatting and lints, all of them errors.
#   LOCKSTEP_REQUIRE_KVM=1 playbooks that cannot be checked here are a failure, not skipped
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"

# skipped PROGRAM: says that its lints are, as it is not here.
skipped() { printf 'SKIPPED: %s is missing (the Debian package %s has it)\n' "$1" "$1" >&2; }

# has PROGRAM: whether one of packages.txt is here.
has() {
    command -v "$1" >/dev/null && return
    skipped "$1"
    [ "${LOCKSTEP_REQUIRE_KVM:-}" != 1 ] || die "$1 is required here (LOCKSTEP_REQUIRE_KVM=1)"
    return 1
}

cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
# A link in a comment that leads nowhere.
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
if has shellcheck; then
    git ls-files "*.sh" .ci/run | xargs shellcheck -x -P SCRIPTDIR
fi
cd deploy
if has yamllint; then
    yamllint --strict .
fi
if has ansible-lint; then
    ansible-lint --offline -q
fi
