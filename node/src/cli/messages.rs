//! What the programs tell people and machines on standard error, or in the journal.

mod journal;
mod limit;

use std::fmt;
use std::io::{self, IsTerminal, Write, stderr};
use std::os::fd::AsFd;

use clap::{Args, ValueEnum};
use tracing::field::Field;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::out::{paragraph, printable, queue};
use crate::sandbox::{self, Kind};
use journal::Journal;

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, on standard error.
    Human,
    /// JSON objects, one a line, on standard error.
    Json,
    /// Entries of the journal, with their fields.
    Journald,
}

/// How messages look.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// How messages look: `human`, `json`, or `journald` (entries with fields) [default: journald where standard error is
    /// the journal, else human].
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

/// Messages go to standard error, as people read them; LOCKSTEP_LOG says which (`info` by default).
pub fn start() {
    start_with(Some(LogFormat::Human), "info");
}

/// The same for a machine that is run, in the format that was asked for. Its threads do not wait for who reads them.
pub fn start_run(options: &LogArgs) {
    let socket = queue::journal_socket();
    let journal = socket.as_ref().ok().and_then(|socket| socket.try_clone().ok());
    let problem = queue::start(journal, |work| sandbox::spawn(Kind::Waits, "teller", work).map(drop));
    start_with(options.log_format, "info");
    if let Err(error) = problem {
        tracing::warn!("messages have no thread of their own: {error}; whoever reads them slowly holds the machine up");
    }
}

/// The same as [`start`], with another filter where the environment has none.
pub fn start_at(default: &str) {
    start_with(Some(LogFormat::Human), default);
}

fn start_with(format: Option<LogFormat>, default: &str) {
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let is_asked = format.is_some();
    let format = format.unwrap_or(if is_journal() {
        LogFormat::Journald
    } else {
        LogFormat::Human
    });
    let (layer, problem) = match layer(format) {
        Ok(layer) => (layer, None),
        Err(error) => (human(), Some(error)),
    };
    let (limit, suppressed) = limit::limit();
    tracing_subscriber::registry()
        .with(layer)
        .with(limit)
        .with(filter)
        .init();
    if let Err(error) = suppressed.report() {
        tracing::warn!("suppressed messages are not counted: {error}");
    }
    if let Some(error) = problem {
        let asked = if is_asked { " that --log-format names" } else { "" };
        tracing::warn!("the journal{asked} cannot be reached: {error}; messages go to standard error");
    }
}

/// Standard error, a message at a time.
struct Lines {
    /// What works on a terminal is escaped here. In other messages it is by then, and colours are not.
    is_json: bool,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = if self.is_json {
            printable(&String::from_utf8_lossy(bytes)).into_owned().into_bytes()
        } else {
            bytes.to_vec()
        };
        queue::text(text);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

fn layer(format: LogFormat) -> std::io::Result<Boxed> {
    Ok(match format {
        LogFormat::Human => human(),
        LogFormat::Json => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true);
            let json = json.with_current_span(false).with_writer(|| Lines { is_json: true });
            json.log_internal_errors(false).boxed()
        }
        LogFormat::Journald => {
            queue::journal_socket()?;
            Journal::of_this_program().boxed()
        }
    })
}

fn human() -> Boxed {
    tracing_subscriber::fmt::layer()
        .with_ansi(stderr().is_terminal())
        .with_writer(|| Lines { is_json: false })
        .without_time()
        .fmt_fields(debug_fn(field))
        // It would tell on standard error that standard error is closed, and panic.
        .log_internal_errors(false)
        .boxed()
}

/// A message, or a field beside it. What a guest, a recording or a peer names may be in both.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = paragraph(&format!("{value:?}"));
    match field.name() {
        "message" => writer.write_str(&value),
        // Of what comes by the `log` crate: told elsewhere in the line.
        name if name.starts_with("log.") => Ok(()),
        name if writer.has_ansi_escapes() => write!(writer, " \x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        name => write!(writer, " {name}={value}"),
    }
}

/// Whether standard error is the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(stderr().as_fd()).is_ok_and(|file| stream == format!("{}:{}", file.st_dev, file.st_ino))
}
