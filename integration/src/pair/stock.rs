//! A Debian as one installs it, with nothing of ours in it (`integration/scripts/stock-debian.sh`), as a machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::net::{CLIENT_IP, GUEST_IP, Namespace};
use crate::paths::target_dir;
use crate::process::check;
use crate::run::{Run, Running};

/// A server of Python's says so within this time.
const SERVING: Duration = Duration::from_secs(300);
/// MiB of its memory.
const MEMORY_MIB: &str = "512";

/// An image of this version's, made at the first time, copied to `to`.
pub fn copy_stock(version: &str, to: &Path) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/stock-debian.sh");
    check(Command::new(script).arg(version))?;
    let image = directory().join(format!("{version}.img"));
    check(Command::new("cp").arg("--sparse=always").arg(&image).arg(to))
        .with_context(|| format!("cannot copy {}", image.display()))?;
    Ok(())
}

/// Boots what is on `disk` by its own kernel, initramfs and words.
pub fn boot_stock(run: Run, disk: &Path) -> Run {
    run.args(["--kernel", "disk", "--memory-mib", MEMORY_MIB]).disk(disk)
}

/// A command for its `root` over ssh, typed in `client`.
pub fn ssh(client: &Namespace, command: &str) -> Command {
    let mut ssh = client.command("ssh");
    ssh.arg("-i")
        .arg(directory().join("id"))
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60"])
        .arg(format!("root@{GUEST_IP}"))
        .arg(command)
        .stdin(Stdio::null());
    ssh
}

/// Runs a command in it over ssh to its end, and returns what it printed.
pub fn ask(client: &Namespace, command: &str) -> Result<String> {
    let Output { status, stdout, stderr } = ssh(client, command).output()?;
    let (said, told) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "`{command}` ended with {status}: {said}{told}");
    Ok(said.into_owned())
}

/// A PostgreSQL client (`pgbench` or `psql`) of this version, for the guest's database `bench`, typed in `client`. Its options follow.
pub fn postgres(version: &str, client: &Namespace, program: &str) -> Command {
    let place = directory().join(format!("client-{version}"));
    let mut command = client.command(place.join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(&place)
        .arg(place.join(program))
        .args(["-h", GUEST_IP, "-U", "postgres"])
        .env("PGDATABASE", "bench");
    command
}

/// Serves a repository of packages for apt from `client`, and returns the server and what to tell the guest's apt of it.
pub fn repository(version: &str, client: &Namespace) -> Result<(Running, String)> {
    let mut server = client.command("python3");
    server
        .args(["-u", "-m", "http.server", "8080", "--bind", CLIENT_IP, "--directory"])
        .arg(directory().join(format!("repository-{version}")));
    let server = Run::program(server).start()?;
    server.wait_for("Serving HTTP", SERVING)?;
    Ok((server, format!("deb [trusted=yes] http://{CLIENT_IP}:8080/ ./")))
}

/// The kernel that the repository has: its package, and the release that it says it is when it runs.
pub fn newer_kernel(version: &str) -> Result<(String, String)> {
    let packages = std::fs::read_to_string(directory().join(format!("repository-{version}/Packages")))?;
    let package = packages
        .lines()
        .find_map(|line| line.strip_prefix("Package: linux-image-"));
    let release = package.context("the repository has no kernel")?;
    Ok((format!("linux-image-{release}"), release.to_owned()))
}

fn directory() -> PathBuf {
    target_dir().join("stock-debian")
}
