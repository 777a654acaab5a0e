//! Packages to install and to upgrade to.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::paths::target_dir;
use crate::process::check;

/// The version of an older package: less than every version that it begins.
const OLDER: &str = concat!(env!("CARGO_PKG_VERSION"), "~older");
/// The newest revision of the device model that it knows: one whose machines have no keyboard.
const OLDER_REVISION: u32 = 1;

fn run(script: &str, version: &str, revision: Option<u32>) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let mut command = Command::new(script);
    command.env("LOCKSTEP_VERSION", version);
    if let Some(revision) = revision {
        command.env("LOCKSTEP_NEWEST_REVISION", revision.to_string());
    }
    check(&mut command).map(drop)
}

/// The package of the programs that are built, and its version.
pub fn current_package() -> Result<(PathBuf, String)> {
    // What the workspace was built as; the package refuses another.
    let version = option_env!("LOCKSTEP_VERSION").unwrap_or(env!("CARGO_PKG_VERSION"));
    run("package.sh", version, None)?;
    Ok((
        target_dir().join(format!("deb/lockstep_{version}_amd64.deb")),
        version.into(),
    ))
}

/// An older one: the same source, which knows the first revision of the device model alone. It is built at the first time.
pub fn older_package() -> Result<(PathBuf, String)> {
    run("older.sh", OLDER, Some(OLDER_REVISION))?;
    Ok((
        target_dir().join(format!("older/deb/lockstep_{OLDER}_amd64.deb")),
        OLDER.into(),
    ))
}
