#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# lint.sh: formatting and lints, all of them errors.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO_DIR"
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
if command -v shellcheck >/dev/null; then
    git ls-files "*.sh" .ci/run | xargs shellcheck -x -P SCRIPTDIR
fi
if command -v ansible-lint >/dev/null && command -v yamllint >/dev/null; then
    (cd deploy && yamllint --strict . && ansible-lint --offline -q)
fi
