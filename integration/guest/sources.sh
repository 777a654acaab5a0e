# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=bash
# Fetches the sources of the kernel, busybox and Redis from the Debian mirror this machine already uses.
#
# They come through apt with its own signed lists and checksums, but with private state under target/: the machine's
# configuration often has no deb-src entries, and is not ours to change.

APT_DIR=$OUT_DIR/apt

# The machine's apt sources, with deb-src added, in both of apt's formats.
derive_apt_sources() {
    local list='' parts='' file
    eval "$(apt-config shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d)"
    mkdir -p "$APT_DIR/sources.list.d" "$APT_DIR/lists/partial" "$APT_DIR/cache/archives/partial"
    rm -f "$APT_DIR"/sources.list.d/*
    : >"$APT_DIR/sources.list"
    for file in "$list" "$parts"/*.list; do
        [ -f "$file" ] || continue
        sed -n -E 's/^[[:space:]]*deb([[:space:]].*)$/deb\1\ndeb-src\1/p' "$file" >>"$APT_DIR/sources.list"
    done
    for file in "$parts"/*.sources; do
        [ -f "$file" ] || continue
        sed -E 's/^Types:.*$/Types: deb deb-src/I' "$file" >"$APT_DIR/sources.list.d/${file##*/}"
    done
    # Read after the machine's own configuration, so that proxies and the like still hold, but no hooks run.
    cat >"$APT_DIR/apt.conf" <<CONF
Dir::Etc::sourcelist "$APT_DIR/sources.list";
Dir::Etc::sourceparts "$APT_DIR/sources.list.d";
Dir::State::lists "$APT_DIR/lists";
Dir::Cache "$APT_DIR/cache";
Acquire::Languages "none";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
CONF
    # Root's apt drops to a user that may not be allowed into this directory.
    [ "$(id -u)" -ne 0 ] || echo 'APT::Sandbox::User "root";' >>"$APT_DIR/apt.conf"
}

apt_get() { apt-get -q -o Acquire::Retries=3 -c "$APT_DIR/apt.conf" "$@" >&2; }

apt_lists_updated=
apt_update() {
    [ -z "$apt_lists_updated" ] || return 0
    derive_apt_sources
    # A third-party repository without sources is no reason to stop: whether ours were found shows in the next step.
    apt_get update || say "apt-get update reported problems; going on with what it got"
    apt_lists_updated=yes
}

# fetch_source NAME deb|dsc PACKAGE: into sources/NAME, with a MANIFEST of checksums that the build's cache keys use.
fetch_source() {
    local kind=$2 package=$3 dir=$SOURCES_DIR/$1
    [ ! -f "$dir/MANIFEST" ] || return 0
    say "fetching $package"
    apt_update
    rm -rf "$dir"
    mkdir -p "$dir"
    case $kind in
        deb) (cd "$dir" && apt_get download "$package") ;;
        dsc) (cd "$dir" && apt_get source --download-only --only-source "$package") ;;
    esac
    (cd "$dir" && sha256sum -- * >MANIFEST.tmp && mv MANIFEST.tmp MANIFEST)
}

# unpack_source NAME DIR: the source tree, Debian's patches applied, as DIR.
unpack_source() {
    local from=$SOURCES_DIR/$1 to=$2 files
    (cd "$from" && sha256sum --quiet -c MANIFEST) || die "$from is damaged; remove it and build again"
    rm -rf "$to"
    mkdir -p "${to%/*}"
    files=("$from"/*.dsc)
    if [ -f "${files[0]}" ]; then
        dpkg-source -q --no-check -x "${files[0]}" "$to" >&2
    else
        # A *-source package: a tar archive with one top folder, inside a .deb.
        mkdir -p "$to"
        files=("$from"/*.deb)
        dpkg-deb --fsys-tarfile "${files[0]}" | tar -xO --wildcards './usr/src/*.tar.xz' |
            tar -xJ -C "$to" --strip-components=1
    fi
}
