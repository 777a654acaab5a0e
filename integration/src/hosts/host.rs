//! A host in a container.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::net::Namespace;
use crate::process::{bound, check};

/// A host is up after a second.
const START_LIMIT: Duration = Duration::from_secs(120);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

/// A host. It loses its power when it is dropped, or when the thread that started it ends.
pub struct Host {
    // Ends before its namespace.
    child: Option<Child>,
    name: String,
    namespace: Namespace,
    dir: PathBuf,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Makes the root that hosts start from, at the first time, and removes what killed processes left.
pub(super) fn make_root() -> Result<()> {
    remove_stale();
    check(&mut Command::new(script("hosts.sh"))).map(drop)
}

impl Host {
    pub(super) fn new(name: &str, namespace: Namespace, dir: &Path, key: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::copy(key, dir.join("key.pub")).with_context(|| format!("cannot copy {}", key.display()))?;
        Ok(Self {
            child: None,
            name: name.into(),
            namespace,
            dir: dir.into(),
        })
    }

    /// Switches it on, and waits until sshd runs.
    pub fn power_on(&mut self) -> Result<()> {
        let console = self.dir.join("console");
        let output = File::create(&console)?;
        let network = format!("--net=/run/netns/{}", self.namespace.name());
        let mut command = bound("nsenter");
        command
            .args([&network, "unshare", "--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(script("host.sh"))
            .args([&self.name, self.namespace.name()])
            .arg(&self.dir);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        self.child = Some(command.spawn().context("cannot start a container")?);
        let begin = Instant::now();
        while !self.listens()? {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || begin.elapsed() > START_LIMIT {
                let said = fs::read_to_string(&console).unwrap_or_default();
                bail!("host {} does not start ({ended:?}): {}", self.name, said.trim());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Takes its power away: every process is gone, and what it has on its disks stays.
    pub fn power_off(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // The first process of its namespace ends after all others; and who waits for that one ends then.
        let pid = child.id();
        let inner = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let inner = inner.trim().parse().ok().and_then(Pid::from_raw);
        if inner.is_none_or(|pid| kill_process(pid, Signal::KILL).is_err()) {
            let _ = child.kill();
        }
        let _ = child.wait();
        remove_groups(self.namespace.name());
    }

    /// Whether sshd runs.
    fn listens(&self) -> Result<bool> {
        let sockets = check(self.namespace.command("ss").args(["-Hlnt", "sport = :22"]))?;
        Ok(!sockets.trim().is_empty())
    }
}

/// Removes control groups of containers whose test is not there any more; they are named as network namespaces are.
fn remove_stale() {
    let mut find = Command::new("find");
    find.args([
        "/sys/fs/cgroup",
        "-type",
        "d",
        "-name",
        "lockstep-*-*",
        "-printf",
        "%f\\n",
    ]);
    let found = find
        .stderr(Stdio::null())
        .output()
        .map(|output| output.stdout)
        .unwrap_or_default();
    for name in String::from_utf8_lossy(&found).lines() {
        let owner = name.split('-').nth(1).and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove_groups(name);
        }
    }
}

/// Removes what is left of a container's control groups.
fn remove_groups(name: &str) {
    let inside = format!("*/{name}/*");
    let mut find = Command::new("find");
    find.args([
        "/sys/fs/cgroup",
        "-depth",
        "-type",
        "d",
        "(",
        "-path",
        &inside,
        "-o",
        "-name",
        name,
        ")",
    ]);
    // Others may come and go meanwhile.
    let _ = find.args(["-exec", "rmdir", "{}", "+"]).stderr(Stdio::null()).status();
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_off();
    }
}
