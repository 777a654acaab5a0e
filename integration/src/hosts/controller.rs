//! Where Ansible runs: playbooks of `deploy`, and what became of them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::gate::soak;
use crate::net::Namespace;
use crate::process::{bound, check};

/// Who logs in on hosts.
const USER: &str = "ops";
/// Where Debian has what runs the tasks of a host in one process that stays, instead of starting an interpreter for each.
const MITOGEN: &str = "/usr/lib/python3/dist-packages/ansible_mitogen/plugins/strategy";

/// A directory with an operator's key, the inventory and what playbooks said.
pub struct Controller<'a> {
    namespace: &'a Namespace,
    dir: PathBuf,
    plays: Cell<u32>,
    /// What was played as operators play it: a playbook, and whether it was only to foretell.
    played: RefCell<HashSet<(String, bool)>>,
}

/// What a playbook did on each host: the numbers of its last lines.
#[derive(Debug)]
pub struct Recap {
    hosts: BTreeMap<String, BTreeMap<String, u32>>,
}

fn may_hurry() -> bool {
    !soak() && Path::new(MITOGEN).exists()
}

impl<'a> Controller<'a> {
    /// One in `namespace`, with a new key.
    pub fn create(namespace: &'a Namespace, dir: &Path) -> Result<Self> {
        let key = dir.join("key");
        check(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&key),
        )?;
        Ok(Self {
            namespace,
            dir: dir.into(),
            plays: Cell::new(0),
            played: RefCell::default(),
        })
    }

    /// The public half of its key.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key.pub")
    }

    /// Writes the inventory; JSON is YAML.
    pub fn set_inventory(&self, inventory: &Value) -> Result<()> {
        fs::write(self.dir.join("inventory.yml"), serde_json::to_string_pretty(inventory)?)?;
        Ok(())
    }

    fn ssh_options(&self) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.dir.join("known_hosts").display());
        ["-F", "none", "-o", "StrictHostKeyChecking=accept-new", "-o", &known]
            .map(str::to_owned)
            .into()
    }

    /// Types a command on a host as root.
    pub fn ask(&self, address: &str, words: &[&str]) -> Result<Output> {
        let mut command = self.namespace.command("ssh");
        command
            .args(self.ssh_options())
            .args(["-q", "-i"])
            .arg(self.dir.join("key"));
        command
            .arg(format!("{USER}@{address}"))
            .arg("sudo")
            .args(words)
            .stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// The status of a machine on a host.
    pub fn status(&self, address: &str, machine: &str) -> Result<Value> {
        let output = self.ask(address, &["lockstep-backup", "status", machine, "--json"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "no status of {machine} at {address}: {said}");
        let list: Value = serde_json::from_slice(&output.stdout)?;
        Ok(list[0].clone())
    }

    /// Whether a playbook is to be played as operators play it: the first time that it is to do something and the first time that
    /// it is to foretell it, in the long forms always. Else by Mitogen.
    fn as_operators(&self, playbook: &str, words: &[&str]) -> bool {
        let kind = (playbook.to_owned(), words.contains(&"--check"));
        self.played.borrow_mut().insert(kind) || !may_hurry()
    }

    fn run(&self, playbook: &str, words: &[&str], as_operators: bool) -> Result<(bool, String)> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize()?;
        // Its connections to hosts stay for the next task, and end with it.
        let ssh = [
            &self.ssh_options()[..],
            &["-o ControlMaster=auto -o ControlPersist=60s".into()],
        ]
        .concat();
        let sockets = tempfile::Builder::new().prefix("lockstep-").tempdir()?;
        let mut command = bound("unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "ip",
                "netns",
                "exec",
                self.namespace.name(),
            ])
            .args(["ansible-playbook", "--inventory"])
            .arg(self.dir.join("inventory.yml"))
            .arg(playbook)
            .args(words)
            .current_dir(&deploy)
            .env("LC_ALL", "C.UTF-8")
            .env("ANSIBLE_CONFIG", deploy.join("ansible.cfg"))
            .env("ANSIBLE_HOME", self.dir.join("ansible"))
            .env("ANSIBLE_LOCAL_TEMP", self.dir.join("ansible/tmp"))
            .env("ANSIBLE_REMOTE_USER", USER)
            .env("ANSIBLE_PRIVATE_KEY_FILE", self.dir.join("key"))
            .env("ANSIBLE_SSH_ARGS", ssh.join(" "))
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", sockets.path())
            .env("ANSIBLE_CALLBACKS_ENABLED", "ansible.posix.profile_tasks")
            .stdin(Stdio::null());
        if !as_operators {
            // It takes no word for hosts' keys that are new.
            command
                .env("ANSIBLE_STRATEGY_PLUGINS", MITOGEN)
                .env("ANSIBLE_STRATEGY", "mitogen_linear")
                .env("ANSIBLE_HOST_KEY_CHECKING", "False");
        }
        let output = command.output().context("cannot start ansible-playbook")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        self.plays.set(self.plays.get() + 1);
        fs::write(self.dir.join(format!("{:02}-{playbook}.log", self.plays.get())), &text)?;
        Ok((output.status.success(), text))
    }

    /// Runs a playbook of `deploy` with these words.
    pub fn play(&self, playbook: &str, words: &[&str]) -> Result<Recap> {
        let begin = std::time::Instant::now();
        let as_operators = self.as_operators(playbook, words);
        let (done, text) = self.run(playbook, words, as_operators)?;
        let by = if as_operators { "Ansible" } else { "Mitogen" };
        println!("{playbook} {words:?}: {:.1} s by {by}", begin.elapsed().as_secs_f64());
        if !done {
            let from = text.find("fatal: ").or_else(|| text.find("ERROR")).unwrap_or_default();
            bail!("{playbook} {words:?}: {}", &text[from..]);
        }
        Recap::read(&text)
    }

    /// Whether a playbook has said this so far.
    pub fn has_said(&self, what: &str) -> Result<bool> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "log") && fs::read_to_string(&path)?.contains(what) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Runs one that has to fail, and say `why`.
    pub fn refused(&self, playbook: &str, words: &[&str], why: &str) -> Result<()> {
        let (done, text) = self.run(playbook, words, !may_hurry())?;
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            !done && flat.contains(why),
            "{playbook} {words:?} does not say `{why}`: {text}"
        );
        Ok(())
    }
}

impl Recap {
    /// From what a playbook said: `host : ok=1 changed=0 ...`.
    fn read(text: &str) -> Result<Self> {
        let (_, end) = text.rsplit_once("PLAY RECAP").context("the playbook has no recap")?;
        let mut hosts = BTreeMap::new();
        for line in end.lines() {
            let Some((host, numbers)) = line.split_once(" : ") else {
                continue;
            };
            let numbers = numbers.split_whitespace().filter_map(|word| {
                let (name, number) = word.split_once('=')?;
                Some((name.to_owned(), number.parse().ok()?))
            });
            hosts.insert(host.trim().to_owned(), numbers.collect());
        }
        Ok(Self { hosts })
    }

    /// What was changed on a host.
    pub fn changed(&self, host: &str) -> Result<u32> {
        let numbers = self.hosts.get(host).with_context(|| format!("no {host} in {self:?}"))?;
        numbers
            .get("changed")
            .copied()
            .with_context(|| format!("no count in {self:?}"))
    }

    /// Whether nothing was changed on any of these hosts.
    pub fn check_unchanged(&self, hosts: &[&str]) -> Result<()> {
        for host in hosts {
            ensure!(self.changed(host)? == 0, "{self:?}");
        }
        Ok(())
    }
}
