//! Runs `lockstep-debug`.

use std::ffi::OsString;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::paths::program;
use crate::process::bound;

/// What a command of it said.
#[derive(Debug)]
pub struct Debug {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub messages: String,
}

impl Debug {
    /// Runs it with these arguments to its end. That it never panics is checked here.
    pub fn run<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = Self::command()?;
        command.args(arguments.into_iter().map(Into::into));
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {command:?}"))?;
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        if messages.contains("panicked") {
            bail!("{command:?} panicked: {messages}");
        }
        Ok(Self {
            status: output.status,
            out: output.stdout,
            messages,
        })
    }

    /// The command without arguments.
    pub fn command() -> Result<Command> {
        Ok(bound(program("lockstep-debug")?))
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Standard output as JSON lines.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
        self.text().lines().map(parse).collect()
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.out).with_context(|| format!("no JSON: {} {}", self.text(), self.messages))
    }

    /// Checks the exit status, and that what it says has `text`.
    pub fn expect(&self, code: i32, text: &str) -> Result<&Self> {
        ensure!(
            self.status.code() == Some(code),
            "{} and not {code}: {} {}",
            self.status,
            self.messages,
            self.text()
        );
        ensure!(
            self.messages.contains(text) || self.text().contains(text),
            "it lacks `{text}`: {} {}",
            self.messages,
            self.text()
        );
        Ok(self)
    }
}
