#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# deb.sh: makes the Debian package of what `make man` has built, target/deb/lockstep_VERSION_amd64.deb.
#   LOCKSTEP_VERSION=1.2~3   the version, as at the build; else the workspace's
# The same commit, built in the same place by the same tools, gives the same package.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

programs=(lockstep-primary lockstep-backup lockstep-debug)
source=$REPO_DIR/deploy/debian
version=${LOCKSTEP_VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml")}
dpkg --validate-version "$version" || die "LOCKSTEP_VERSION: \`$version\` is no version of a Debian package"
for program in "${programs[@]}"; do
    [ "$("$TARGET_DIR/release/$program" --version)" = "$program $version" ] ||
        die "$TARGET_DIR/release/$program is not version $version: run \`make deb\` with the same LOCKSTEP_VERSION"
done

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$REPO_DIR" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
umask 022
mkdir -p "$TARGET_DIR/deb"
# One at a time; and who reads the package meanwhile has the one before, whole.
exec 9>"$TARGET_DIR/deb/lock"
flock 9
stage=$TARGET_DIR/deb/stage
rm -rf "$stage"
mkdir -p "$stage/DEBIAN"

# put MODE FROM TO: a file of the package.
put() { install -D -m "$1" "$2" "$stage/$3"; }

for program in "${programs[@]}"; do
    put 755 "$TARGET_DIR/release/$program" "usr/bin/$program"
    strip --strip-unneeded --remove-section=.comment --remove-section=.note "$stage/usr/bin/$program"
    put 644 "$TARGET_DIR/completions/bash/$program" "usr/share/bash-completion/completions/$program"
    put 644 "$TARGET_DIR/completions/fish/$program.fish" "usr/share/fish/vendor_completions.d/$program.fish"
    put 644 "$TARGET_DIR/completions/zsh/_$program" "usr/share/zsh/vendor-completions/_$program"
    for page in "$TARGET_DIR/man/$program"*.1; do
        put 644 "$page" "usr/share/man/man1/$(basename "$page")"
    done
done
gzip -9n "$stage"/usr/share/man/man1/*.1
put 644 "$REPO_DIR/deploy/lockstep@.service" lib/systemd/system/lockstep@.service
put 644 "$source/lockstep.sysusers" usr/lib/sysusers.d/lockstep.conf
put 644 "$source/lockstep.tmpfiles" usr/lib/tmpfiles.d/lockstep.conf

documents=usr/share/doc/lockstep
for example in "$REPO_DIR"/deploy/machine.toml "$REPO_DIR"/deploy/prometheus/*.{yml,json}; do
    put 644 "$example" "$documents/examples/$(basename "$example")"
done
for document in "$REPO_DIR"/{README,ARCHITECTURE,docs/*}.md; do
    put 644 "$document" "$documents/$(basename "$document")"
done
for picture in "$REPO_DIR"/docs/pictures/*; do
    put 644 "$picture" "$documents/pictures/$(basename "$picture")"
done
# The licence's text, as a Debian copyright file has it: a space before each line, a point on empty ones.
{
    sed '/@MIT@/,$d' "$source/copyright.in"
    sed -e 's/^$/./' -e 's/^/ /' "$REPO_DIR/LICENSE-MIT"
    sed '1,/@MIT@/d' "$source/copyright.in"
} >"$stage/$documents/copyright"
cat >"$stage/$documents/changelog" <<END
lockstep ($version) unstable; urgency=medium

  * Built from commit $(git -C "$REPO_DIR" rev-parse --short=12 HEAD).

 -- $(sed -n 's/^Maintainer: //p' "$source/control.in")  $(date -uR -d "@$SOURCE_DATE_EPOCH")
END
gzip -9n "$stage/$documents/changelog"

# dpkg-shlibdeps looks for a source package's control file where it runs.
mkdir -p "$TARGET_DIR/deb/shlibs/debian"
printf 'Source: lockstep\n\nPackage: lockstep\nArchitecture: amd64\n' >"$TARGET_DIR/deb/shlibs/debian/control"
depends=$(cd "$TARGET_DIR/deb/shlibs" && dpkg-shlibdeps -O "${programs[@]/#/$stage/usr/bin/}" | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || die "dpkg-shlibdeps found no libraries that the programs need"
size=$(du -k -s --apparent-size --exclude=DEBIAN "$stage" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size/" -e "s/@DEPENDS@/$depends/" "$source/control.in" >"$stage/DEBIAN/control"
for script in postinst prerm postrm; do
    put 755 "$source/$script" "DEBIAN/$script"
done
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)

find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
package=$TARGET_DIR/deb/lockstep_${version}_amd64.deb
# A seventh more than with the highest level, in a third of the time: the tests wait for it.
dpkg-deb --root-owner-group -Zxz -z2 --build "$stage" "$package.partial" >/dev/null
mv "$package.partial" "$package"
rm -rf "$stage" "$TARGET_DIR/deb/shlibs"
say "the package is $package"
