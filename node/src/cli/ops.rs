//! What operators type, the same for both programs: `status`, `wait`, and the requests to a machine that runs here.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::fleet::{self, FleetOptions};
use super::promote::{self, PromoteOptions};
use super::sockets;
use super::table::table;
use crate::api::{self, ClientError, DEFAULT_SHUTDOWN_SECONDS, MAX_SHUTDOWN_SECONDS, Report, Route, ShutdownBody};
use crate::out::{Out, printable};
use crate::status::RecordingState;
use crate::{say, say_on, tell};

/// From one look at a status to the next while it is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// The same where it is watched.
const WATCH: Duration = Duration::from_secs(1);

/// What operators ask.
#[derive(Subcommand)]
pub enum OpsCommand {
    /// Tell how the machines on this host are.
    Status(StatusOptions),
    /// Tell how all machines of an etcd are, on whatever hosts.
    Fleet(Box<FleetOptions>),
    /// Wait until a machine is in a state.
    Wait(WaitOptions),
    /// End a machine's process as a crash would, to see its backup take over.
    TestFailover(Target),
    /// Let the backup go on with the machine, and become its backup.
    Switchover(Target),
    /// Give protection up: the machine goes on alone until `resume`.
    Suspend(Target),
    /// Take a backup again.
    Resume(Target),
    /// Ask the guest to shut down, and end the machine on both hosts.
    Shutdown(ShutdownOptions),
    /// Make this node the machine's owner by force, after the other one is lost for good.
    Promote(Box<PromoteOptions>),
}

/// Which machine.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// The machine; can be left out where only one runs here.
    #[arg(value_name = "NAME", conflicts_with = "api")]
    name: Option<String>,
    /// Its socket, instead of its name.
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Which machines, and how to tell.
#[derive(Args)]
pub struct StatusOptions {
    #[command(flatten)]
    target: Target,
    /// Tell again every second, until interrupted.
    #[arg(long, conflicts_with = "check")]
    watch: bool,
    /// Exit with 1 unless every machine shown is protected.
    #[arg(long)]
    check: bool,
}

/// What to wait for.
#[derive(Args)]
pub struct WaitOptions {
    #[command(flatten)]
    target: Target,
    /// The state, with or without its reason: `protected`, `not-protected`, `frozen (no-arbiter)`.
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    r#for: String,
    /// Exit with 1 after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Duration,
}

/// How to shut down.
#[derive(Args)]
pub struct ShutdownOptions {
    #[command(flatten)]
    target: Target,
    /// End the machine by force after so many seconds; 0: at once, as a power failure.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SHUTDOWN_SECONDS, value_parser = parse_shutdown)]
    timeout: f64,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    let limit = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    // What is longer than a year is for ever, and no clock overflows.
    Ok(limit.min(Duration::from_secs(365 * 86_400)))
}

/// A word that no machine ever says would be waited for until the timeout.
fn parse_state(text: &str) -> Result<String, String> {
    if api::is_a_state(text) {
        return Ok(text.to_owned());
    }
    Err(format!("not a state; these are: {}", api::STATES.join("; ")))
}

fn parse_shutdown(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    if (0.0..=MAX_SHUTDOWN_SECONDS).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("not 0 to {MAX_SHUTDOWN_SECONDS} seconds"))
    }
}

/// Does what the operator asks.
pub fn run(command: &OpsCommand) -> Result<ExitCode> {
    match command {
        OpsCommand::Status(options) => status(options),
        OpsCommand::Fleet(options) => fleet::run(options),
        OpsCommand::Wait(options) => wait(options),
        OpsCommand::TestFailover(target) => post(target, Route::TestFailover, None),
        OpsCommand::Switchover(target) => post(target, Route::Switchover, None),
        OpsCommand::Suspend(target) => post(target, Route::Suspend, None),
        OpsCommand::Resume(target) => post(target, Route::Resume, None),
        OpsCommand::Shutdown(options) => {
            let body = ShutdownBody {
                timeout_seconds: options.timeout,
            };
            post(&options.target, Route::Shutdown, Some(body))
        }
        OpsCommand::Promote(options) => promote::run(options),
    }
}

impl Target {
    /// The one socket that is meant.
    fn socket(&self) -> Result<PathBuf> {
        match (&self.api, &self.name) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(name)) => Ok(sockets::of(name)),
            (None, None) => sockets::only(),
        }
    }

    /// Every socket that is meant.
    fn sockets(&self) -> Result<Vec<PathBuf>> {
        if self.api.is_none() && self.name.is_none() {
            return sockets::all();
        }
        self.socket().map(|socket| vec![socket])
    }

    /// Says what there is instead, where what was named is not there.
    fn explain(&self, error: ClientError) -> anyhow::Error {
        let absent = matches!(error, ClientError::Missing(_) | ClientError::Dead(_)) && self.api.is_none();
        let explained = anyhow::Error::new(error);
        if absent {
            explained.context(sockets::what_there_is())
        } else {
            explained
        }
    }
}

fn post(target: &Target, route: Route, body: Option<ShutdownBody>) -> Result<ExitCode> {
    let socket = target.socket()?;
    api::client::post(&socket, route, body).map_err(|error| target.explain(error))?;
    if target.json {
        say!("{}", serde_json::json!({"begun": true}));
    } else {
        say!("begun; `status` tells how it goes");
    }
    Ok(ExitCode::SUCCESS)
}

fn wait(options: &WaitOptions) -> Result<ExitCode> {
    // A machine that is not there yet, or starts over just now, is waited for too.
    let until = Instant::now() + options.timeout;
    loop {
        let asked = options
            .target
            .socket()
            .and_then(|socket| api::client::status(&socket).map_err(|error| options.target.explain(error)));
        match asked {
            Ok(report) if report.is_in(&options.r#for) => {
                if options.target.json {
                    say!("{}", serde_json::to_string(&report)?);
                }
                return Ok(ExitCode::SUCCESS);
            }
            Ok(report) if Instant::now() >= until => {
                bail!(
                    "`{}` is `{}` and not `{}` after {:?}",
                    report.machine,
                    report.words(),
                    options.r#for,
                    options.timeout
                );
            }
            Err(error) if Instant::now() >= until || !may_come(&error) => return Err(error),
            _ => std::thread::sleep(LOOK),
        }
    }
}

/// Whether it is worth waiting after this error.
fn may_come(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(error) => error.is_absent() || matches!(error, ClientError::Silent { .. }),
        None => error.is::<sockets::NoMachine>(),
    }
}

/// A machine as it is shown: its socket, and what it tells.
type Shown = (PathBuf, Result<Report, ClientError>);

fn status(options: &StatusOptions) -> Result<ExitCode> {
    loop {
        let shown: Vec<Shown> = options
            .target
            .sockets()?
            .into_iter()
            .map(|socket| {
                let report = api::client::status(&socket);
                (socket, report)
            })
            .collect();
        let text = match options.target.json {
            true => as_json(&shown)?,
            false if shown.is_empty() => String::new(),
            false => as_table(&shown),
        };
        if !options.watch {
            say_on!("{text}");
            return verdict(options, shown);
        }
        // An error ends the watch: nobody looks any more.
        if !options.target.json && std::io::stdout().is_terminal() {
            // To the top left, and clear what is below.
            Out.write_all(b"\x1b[H\x1b[J")?;
        }
        Out.write_all(printable(&text).as_bytes())?;
        Out.flush()?;
        std::thread::sleep(WATCH);
    }
}

fn verdict(options: &StatusOptions, shown: Vec<Shown>) -> Result<ExitCode> {
    let named = options.target.api.is_some() || options.target.name.is_some();
    let is_protected = |(_, report): &Shown| report.as_ref().is_ok_and(Report::is_protected);
    if options.check && (shown.is_empty() || !shown.iter().all(is_protected)) {
        return Ok(ExitCode::from(1));
    }
    if shown.is_empty() {
        tell!("{}", sockets::what_there_is());
    }
    // One that was asked for has to answer; of all that there are, the others were shown.
    for (_, report) in shown {
        if let Err(error) = report
            && named
        {
            return Err(options.target.explain(error));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(shown: &[Shown]) -> Result<String> {
    let values: Vec<_> = shown
        .iter()
        .map(|(socket, report)| match report {
            Ok(report) => serde_json::to_value(report),
            Err(error) => Ok(serde_json::json!({
                "machine": sockets::name_of(socket),
                "error": error.to_string(),
            })),
        })
        .collect::<Result<_, _>>()?;
    Ok(serde_json::to_string(&values)? + "\n")
}

fn as_table(shown: &[Shown]) -> String {
    let head = [
        "MACHINE", "NODE", "ROLE", "STATE", "TERM", "PEER", "LAG", "HELD", "LOG/S", "EXECUTED",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for (socket, report) in shown {
        rows.push(match report {
            Ok(report) => row(report),
            Err(error) => absent(socket, error),
        });
    }
    table(rows)
}

fn row(report: &Report) -> [String; 10] {
    [
        report.machine.clone(),
        report.node.clone(),
        report.role.clone(),
        state(report),
        report.term.to_string(),
        report.peer.clone().unwrap_or_else(|| "-".into()),
        format!("{:.0} ms", report.lag_ms),
        report.held.to_string(),
        format!("{:.0} KiB", report.log_bytes_per_second / 1024.0),
        report
            .executed_share
            .map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0)),
    ]
}

/// The state, and what an operator should know beside it.
fn state(report: &Report) -> String {
    let mut text = report.words();
    if let Some(seconds) = report.shutdown_seconds {
        // Writing to a string does not fail.
        let _ = write!(text, ", shutting down ({seconds:.0} s left)");
    }
    if report.recording.state == RecordingState::Stopped {
        text += ", no longer recorded";
    }
    text
}

fn absent(socket: &Path, error: &ClientError) -> [String; 10] {
    let mut row: [String; 10] = Default::default();
    row[0] = sockets::name_of(socket);
    row[3] = match error {
        ClientError::Missing(_) | ClientError::Dead(_) | ClientError::Gone { .. } => "not running".into(),
        ClientError::Silent { .. } => "does not answer".into(),
        ClientError::Permission(_) => "no permission to ask".into(),
        other => other.to_string(),
    };
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_and_bounded() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert!(parse_seconds("-1").is_err() && parse_seconds("x").is_err() && parse_seconds("NaN").is_err());
        assert!(Instant::now().checked_add(parse_seconds("1e15").unwrap()).is_some());
        assert!(parse_shutdown("86401").is_err() && parse_shutdown("-1").is_err() && parse_shutdown("NaN").is_err());
        assert_eq!(parse_shutdown("0"), Ok(0.0));
    }

    #[test]
    fn a_machine_that_does_not_answer_is_in_the_table_and_in_the_json() {
        let dead = PathBuf::from("/run/lockstep/vm.sock");
        let shown = [(dead.clone(), Err(ClientError::Dead(dead)))];
        let table = as_table(&shown);
        assert!(
            table.lines().nth(1).unwrap().starts_with("vm ") && table.ends_with("not running\n"),
            "{table}"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&shown).unwrap()).unwrap();
        assert_eq!(json[0]["machine"], "vm");
    }
}
