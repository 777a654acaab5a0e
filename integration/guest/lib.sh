# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash disable=SC2034
# Shared by the guest's build scripts: where things are, and a cache named by what goes in.

# Without this a failed command inside $(...) goes unnoticed.
shopt -s inherit_errexit

GUEST_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO_DIR=$(cd "$GUEST_DIR/../.." && pwd)
OUT_DIR=$REPO_DIR/target/guest
SOURCES_DIR=$OUT_DIR/sources
CACHE_DIR=$OUT_DIR/cache
WORK_DIR=$OUT_DIR/work
JOBS=${JOBS:-$(nproc)}

# Everything that sorts or formats must do so alike on every machine.
export LC_ALL=C TZ=UTC
# One fixed date in every output: the build is meant to be reproducible.
export SOURCE_DATE_EPOCH=1700000000

say() { printf 'guest: %s\n' "$*" >&2; }
die() { printf 'guest: error: %s\n' "$*" >&2; exit 1; }

# What is missing of packages.txt, one per line.
missing_packages() {
    local package
    sed -e 's/#.*//' "$GUEST_DIR/packages.txt" | while read -r package; do
        [ -n "$package" ] || continue
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done
}

check_packages() {
    command -v dpkg-query >/dev/null || die "this build needs Debian's packages (see packages.txt); there is no dpkg here"
    local missing
    missing=$(missing_packages | tr '\n' ' ')
    [ -z "$missing" ] || die "missing Debian packages, install them with: apt-get install --no-install-recommends $missing"
}

# input_hash NAME FILE...: a name for a build, from the contents of its inputs and the text on standard input.
input_hash() {
    local name=$1
    shift
    {
        cat
        local file
        for file in "$@"; do
            printf '%s %s\n' "$(sha256sum <"$file" | cut -d' ' -f1)" "${file#"$GUEST_DIR"/}"
        done
    } | sha256sum | { read -r hash _; echo "$name-${hash:0:16}"; }
}

# cached KEY COMMAND ARG...: runs the command with an empty directory as its last argument, unless the cache has KEY.
# Prints the cache directory. A failed build leaves nothing behind that looks like a result.
cached() {
    local key=$1 dir=$CACHE_DIR/$1
    shift
    if [ ! -d "$dir" ]; then
        rm -rf "$dir.tmp"
        mkdir -p "$dir.tmp"
        "$@" "$dir.tmp" >&2
        mv "$dir.tmp" "$dir"
    fi
    echo "$dir"
}

# publish FILE: makes a cached file an output. A rename, so that nobody sees half of it; nothing if it is the same file.
publish() {
    local to=$OUT_DIR/${1##*/}
    [ "$1" -ef "$to" ] && return
    ln -f "$1" "$to.tmp"
    mv -f "$to.tmp" "$to"
}

# check_config FRAGMENT CONFIG: fails, with a list, unless every symbol of the fragment has its value in the config.
# Kconfig drops what it does not know or whose dependencies are missing without a word.
check_config() {
    local fragment=$1 config=$2 symbol value got lost=
    while IFS='=' read -r symbol value; do
        got=$(sed -n "s/^$symbol=//p" "$config")
        [ "${got:-n}" = "$value" ] || lost+="  $symbol: wanted $value, got ${got:-n}"$'\n'
    done < <(grep -E '^CONFIG_[A-Z0-9a-z_]+=' "$fragment")
    [ -z "$lost" ] || die "configuration symbols of ${fragment##*/} did not survive:"$'\n'"$lost"
}
