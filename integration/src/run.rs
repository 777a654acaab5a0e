//! Runs `lockstep-primary run` with the guest's console on pipes.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::net::{Namespace, TAP};
use crate::paths::{Guest, program};
use crate::process::{self, bound};
use crate::transcript::Transcript;

/// Words that the guest's kernel needs where ring 0 is interpreted (integration/guest/README.md), and fast resets.
pub const WORDS: &str = "quiet clearcpuid=smap,smep,popcnt,erms,fsrm,rdrand,rdseed,serialize rodata=off panic=-1";
/// A run that is asked to end has its log on the disk after this.
const END_LIMIT: Duration = Duration::from_secs(60);
/// From one look at whether it listens to the next.
const LOOK: Duration = Duration::from_millis(5);

/// What to run.
#[derive(Debug)]
pub struct Run {
    command: Command,
}

impl Run {
    /// `lockstep-primary run` with nothing else.
    pub fn bare() -> Result<Self> {
        Ok(Self::with(bound(program("lockstep-primary")?)))
    }

    /// The same inside a network namespace, with its tap as the guest's NIC.
    pub fn inside(namespace: &Namespace) -> Result<Self> {
        let run = Self::with(namespace.command(program("lockstep-primary")?));
        Ok(run.args(["--net", &format!("tap={TAP}")]))
    }

    /// `command` followed by our arguments.
    pub fn with(mut command: Command) -> Self {
        command.args(["run", "--json"]);
        Self { command }
    }

    /// Another program than ours, to be followed as one of ours is.
    pub fn program(command: Command) -> Self {
        Self { command }
    }

    /// Boots the guest's kernel with `initrd` and `words`.
    #[must_use]
    pub fn boot(self, guest: &Guest, initrd: &Path, memory_mib: u64, words: &str) -> Self {
        self.boot_disk(guest, memory_mib, words)
            .args([OsStr::new("--initrd"), initrd.as_os_str()])
    }

    /// The same without an initrd: `words` say where its root is.
    #[must_use]
    pub fn boot_disk(self, guest: &Guest, memory_mib: u64, words: &str) -> Self {
        self.args([OsStr::new("--kernel"), guest.vmlinux.as_os_str()]).args([
            "--memory-mib",
            &memory_mib.to_string(),
            "--cmdline",
            &format!("{WORDS} {words}"),
        ])
    }

    /// Goes on from a snapshot.
    #[must_use]
    pub fn restore(self, snapshot: &Path) -> Self {
        self.args([OsStr::new("--snapshot"), snapshot.as_os_str()])
    }

    /// Records.
    #[must_use]
    pub fn record(self, directory: &Path) -> Self {
        self.args([OsStr::new("--record"), directory.as_os_str()])
    }

    /// With a disk.
    #[must_use]
    pub fn disk(self, image: &Path) -> Self {
        self.args([OsStr::new("--disk"), image.as_os_str()])
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, arguments: I) -> Self {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Result<Running> {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.command))?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("the child has no pipes");
        };
        Ok(Running {
            stdin: child.stdin.take(),
            console: Transcript::of(stdout)?,
            messages: Transcript::of(stderr)?,
            child,
        })
    }

    /// Starts it and waits until it ends by itself.
    pub fn complete(self, limit: Duration) -> Result<Outcome> {
        self.start()?.wait(limit)
    }
}

/// A running machine. Dropping it kills it.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The guest's console.
    pub console: Transcript,
    /// What the program itself says.
    pub messages: Transcript,
}

impl Running {
    /// Types on the guest's console.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the console's input is closed")?;
        stdin.write_all(text.as_bytes())?;
        stdin.flush()?;
        Ok(())
    }

    /// Waits for a text on the console; what came before the last text that was found does not count.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        self.console
            .wait_for(text, limit)
            .with_context(|| format!("it says: {}", self.messages.text()))
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(&self.child, signal)
    }

    /// Ends it at once, with its files whole. (SIGTERM would first have the machine of a pair go elsewhere.)
    pub fn terminate(self) -> Result<Outcome> {
        let signal = self.wait_until_it_listens()?;
        self.signal(signal)?;
        self.wait(END_LIMIT)
    }

    /// Until it has a handler, a signal ends it as it is. Returns one that it listens to: what was ignored where it was
    /// started, as `nohup` has it of SIGHUP, stays ignored.
    pub fn wait_until_it_listens(&self) -> Result<Signal> {
        let path = format!("/proc/{}/status", self.pid());
        let begin = Instant::now();
        loop {
            let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let caught = field("SigCgt:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
            let is_caught = |signal: &Signal| caught.is_some_and(|mask| mask >> (signal.as_raw() - 1) & 1 == 1);
            if let Some(signal) = [Signal::HUP, Signal::INT].into_iter().find(is_caught) {
                return Ok(signal);
            }
            if field("State:").is_some_and(|state| state.starts_with('Z')) {
                return Ok(Signal::HUP);
            }
            if begin.elapsed() > END_LIMIT {
                bail!("it listens neither to SIGHUP nor to SIGINT: {status}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends it as a power failure would.
    pub fn kill(self) -> Result<Outcome> {
        self.signal(Signal::KILL)?;
        self.wait(END_LIMIT)
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self, limit: Duration) -> Result<Outcome> {
        // Both pipes close when the process ends; then waiting for it takes no time.
        if !self.console.wait_for_end(limit) || !self.messages.wait_for_end(limit) {
            bail!(
                "it did not end in {} s; its console:\n{}\nit says: {}",
                limit.as_secs(),
                self.console.text(),
                self.messages.text()
            );
        }
        let status = self.child.wait()?;
        let outcome = Outcome {
            status,
            console: self.console.text(),
            messages: self.messages.text(),
        };
        if outcome.messages.contains("panicked") {
            bail!("it panicked: {}", outcome.messages);
        }
        Ok(outcome)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// All that the guest printed.
    pub console: String,
    /// All that the program itself said.
    pub messages: String,
}

impl Outcome {
    /// The report of a run that ended in order.
    pub fn report(&self) -> Result<serde_json::Value> {
        if !self.status.success() {
            bail!("the run ended with {}: {}", self.status, self.messages);
        }
        let line = self.messages.lines().rev().find(|line| line.starts_with('{'));
        serde_json::from_str(line.context("the run printed no report")?).context("the report is no JSON")
    }

    /// Checks that it failed with `code`, a message with all of `texts`, and nothing else.
    pub fn expect_failure(&self, code: i32, texts: &[&str]) -> Result<()> {
        if self.status.code() != Some(code) {
            bail!("it ended with {} and not with {code}: {}", self.status, self.messages);
        }
        for text in texts {
            if !self.messages.contains(text) {
                bail!("its message lacks `{text}`: {}", self.messages);
            }
        }
        Ok(())
    }
}
