//! What the programs print: on standard output what was asked for, on standard error what is told beside it.
//!
//! Two things hold for all of it. A reader that closes early (`| head`) is no failure: what is left to print goes nowhere,
//! and the exit status stays the verdict. And nothing that a guest, a recording or a peer names works on the operator's
//! terminal: control characters are printed as escapes, and what has to stay in its line has no line feed either.

pub mod queue;

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Error, Result};

/// Standard output's reader has closed it.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Why standard output takes nothing, where its reader has not closed it: a full disk, say.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// As `println!`, and never a panic.
#[macro_export]
macro_rules! say {
    () => { $crate::out::say(format_args!("\n")) };
    ($($text:tt)*) => { $crate::out::say(format_args!("{}\n", format_args!($($text)*))) };
}

/// As `print!`, and never a panic.
#[macro_export]
macro_rules! say_on {
    ($($text:tt)*) => { $crate::out::say(format_args!($($text)*)) };
}

/// As `eprintln!`, and never a panic.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => { $crate::out::tell(format_args!("{}\n", format_args!($($text)*))) };
}

/// Standard output as a stream of bytes, for what is too long for `say!`. Errors are for the caller, and at last for [`end`].
pub struct Out;

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        noted(io::stdout().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        noted(io::stdout().flush())
    }
}

/// Whether a file that is to be written is standard output: `-`, or a name of what is open there.
pub fn is_stdout(path: &Path) -> bool {
    let same = |file: fs::Metadata| {
        rustix::fs::fstat(io::stdout()).is_ok_and(|out| (file.dev(), file.ino()) == (out.st_dev, out.st_ino))
    };
    path == Path::new("-") || path.metadata().is_ok_and(same)
}

/// A file to write, replacing what is there, or standard output. What is said beside it goes to standard error.
pub fn create(path: &Path) -> io::Result<Box<dyn Write>> {
    Ok(if is_stdout(path) {
        Box::new(Out)
    } else {
        Box::new(File::create(path)?)
    })
}

fn noted<T>(result: io::Result<T>) -> io::Result<T> {
    if result
        .as_ref()
        .is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
    {
        CLOSED.store(true, Ordering::Relaxed);
    }
    result
}

/// For the macros.
pub fn say(text: Arguments<'_>) {
    if CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let written = Out.write_all(printable(&text.to_string()).as_bytes());
    note_failure(written);
}

/// For the macro.
pub fn tell(text: Arguments<'_>) {
    queue::text(printable(&text.to_string()).into_owned().into_bytes());
}

fn note_failure(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        // A plain value: whole whenever the lock is free.
        FAILED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }
}

/// Ends a program: tells the error, if there is one, and says what its exit status is.
pub fn end(program: &str, result: Result<ExitCode>, failure: u8) -> ExitCode {
    note_failure(Out.flush());
    let failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let result = result.and_then(|code| match failed {
        None => Ok(code),
        Some(error) => Err(error).context("cannot write to standard output"),
    });
    let code = match result {
        Ok(code) => code,
        Err(error) if CLOSED.load(Ordering::Relaxed) && is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(format_args!("{program}: {}\n", paragraph(&format!("{error:#}"))));
            ExitCode::from(failure)
        }
    };
    queue::settle();
    code
}

fn is_broken_pipe(error: &Error) -> bool {
    let kinds = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<io::Error>().map(io::Error::kind);
    error
        .chain()
        .filter_map(kinds)
        .any(|kind| kind == ErrorKind::BrokenPipe)
}

/// Text of several lines in which nothing works on a terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    // A line feed, a tabulator, and the line feed's carriage return on a terminal in raw mode.
    escaped(text, |one, next| {
        matches!((one, next), ('\n' | '\t', _) | ('\r', Some('\n')))
    })
}

/// A text as one paragraph: what follows a line feed is set in, so that nobody's words look like a message of their own.
pub fn paragraph(text: &str) -> String {
    escaped(text, |one, _| matches!(one, '\n' | '\t')).replace('\n', "\n    ")
}

/// A value that somebody else chose, as it stands in one line.
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_, _| false)
}

/// Escapes as JSON has them: what is JSON stays JSON.
fn escaped(text: &str, stays: impl Fn(char, Option<char>) -> bool) -> Cow<'_, str> {
    if !text.chars().any(works) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    while let Some(one) = chars.next() {
        if works(one) && !stays(one, chars.peek().copied()) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{:04x}", u32::from(one));
        } else {
            out.push(one);
        }
    }
    Cow::Owned(out)
}

/// Control characters, line separators, and what turns the direction of writing round.
pub fn works(one: char) -> bool {
    one.is_control() || matches!(one, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_name_does_not_work_on_a_terminal() {
        assert_eq!(printable("plain ä\tb\r\n"), "plain ä\tb\r\n");
        assert_eq!(
            printable("a\x1b[2Jb\rc\u{9b}d\u{202e}"),
            "a\\u001b[2Jb\\u000dc\\u009bd\\u202e"
        );
        assert_eq!(one_line("init\npid 1"), "init\\u000apid 1");
        assert_eq!(paragraph("a\nINFO b\x1b"), "a\n    INFO b\\u001b");
        let json = serde_json::to_string("\u{9b}\x7f").unwrap();
        let shown: String = serde_json::from_str(&printable(&json)).unwrap();
        assert_eq!(shown, "\u{9b}\x7f");
    }
}
