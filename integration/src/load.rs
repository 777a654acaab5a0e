//! Load on a guest's Redis by Redis' own clients.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::net::{GUEST_IP, Namespace};
use crate::process::check;

/// What redis-cli answers to one command.
pub fn redis_cli(namespace: &Namespace, words: &[&str]) -> Result<String> {
    let answer = check(
        namespace
            .command("timeout")
            .args(["60", "redis-cli", "-h", GUEST_IP])
            .args(words),
    )?;
    Ok(answer.trim().to_owned())
}

/// Requests of the first benchmark: a guest that is interpreted answers 20 a second and more.
pub const FIRST_REQUESTS: u32 = 50;

/// Requests of a benchmark that takes about four seconds, where one with `requests` took `took`.
pub fn paced(requests: u32, took: Duration) -> u32 {
    let scaled = f64::from(requests) * 4.0 / took.as_secs_f64().max(0.01);
    scaled.clamp(20.0, 200_000.0) as u32
}

/// A running redis-benchmark. Dropping it kills it.
#[derive(Debug)]
pub struct Benchmark {
    child: Child,
}

impl Benchmark {
    /// SET and GET from four connections, `requests` of each.
    pub fn start(namespace: &Namespace, requests: u32) -> Result<Self> {
        let mut command = command(namespace, requests);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Ok(Self {
            child: child.context("cannot start redis-benchmark")?,
        })
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end. Returns its rates, a line for each command.
    pub fn wait(mut self) -> Result<Vec<String>> {
        let mut text = String::new();
        let mut said = String::new();
        if let Some(mut out) = self.child.stdout.take() {
            std::io::Read::read_to_string(&mut out, &mut text)?;
        }
        if let Some(mut out) = self.child.stderr.take() {
            std::io::Read::read_to_string(&mut out, &mut said)?;
        }
        let status = self.child.wait()?;
        // With -q it overwrites a progress line; what stands last in each line counts.
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.rsplit('\r').find(|part| part.contains("requests per second")))
            .map(|line| line.trim().to_owned())
            .collect();
        if !status.success() || lines.is_empty() {
            bail!("redis-benchmark ended with {status}: {text} {said}");
        }
        Ok(lines)
    }
}

impl Drop for Benchmark {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(namespace: &Namespace, requests: u32) -> Command {
    let mut command = namespace.command("redis-benchmark");
    command.args([
        "-h",
        GUEST_IP,
        "-c",
        "4",
        "-n",
        &requests.to_string(),
        "-d",
        "64",
        "-r",
        "1000",
    ]);
    command.args(["-t", "set,get", "-q"]);
    command
}
