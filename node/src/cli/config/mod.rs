//! The configuration of a machine: one file for both programs, environment and flags.
//!
//! Invariants:
//! - Every long flag of `run` is a key of the file, and no other key is taken: there is one list, clap's. Only what a node
//!   that may stand by has more (`listen`, `role`) is passed over by `lockstep-primary run`, so that one file does for both.
//! - What is set in several places is taken from the flag, else from the environment (LOCKSTEP_ and the flag's name), else
//!   from the file. A list is taken whole from one of them.
//! - A file with a problem starts nothing.

pub mod file;
mod merge;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{ArgMatches, Command, Parser};

pub use merge::{Checked, OF_PRIMARY, check};

/// Something that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where in the file, from 1; 0: nowhere in particular.
    pub line: usize,
    /// The key.
    pub key: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}. Remedy: {}", self.what, self.remedy)
    }
}

/// The subcommand that is configured.
const RUN: &str = "run";
/// The flag that names the file.
const CONFIG: &str = "config";

/// Parses this process' command line, with environment and file for `run`. Ends the process as clap does where that is
/// wrong.
pub fn parse<C: Parser>() -> C {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let matches = complete(C::command(), arguments).unwrap_or_else(|error| error.exit());
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Lets every flag of `run` be set in the environment.
fn with_environment(command: Command) -> Command {
    command.mut_subcommand(RUN, |run| {
        run.after_help(
            "Each option can also be set as LOCKSTEP_OPTION_NAME in the environment, or in the file of --config.",
        )
        .mut_args(|arg| {
            let Some(long) = arg.get_long() else { return arg };
            let name = format!("LOCKSTEP_{}", long.to_uppercase().replace('-', "_"));
            arg.env(name).hide_env(true)
        })
    })
}

/// Parses `arguments` of a program, with environment and file for `run`.
pub fn complete(command: Command, arguments: Vec<OsString>) -> Result<ArgMatches, clap::Error> {
    let mut command = with_environment(command);
    // What was typed and what the environment has; what is wrong with it is told by the second parse.
    let typed = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(arguments.clone());
    let file = typed.as_ref().ok().and_then(|typed| {
        let run = typed.subcommand_matches(RUN)?;
        Some((run, run.get_one::<PathBuf>(CONFIG)?))
    });
    let Some((run, path)) = file else {
        return command.try_get_matches_from(arguments);
    };
    let said = |command: &mut Command, problems: &[Problem]| {
        command.error(ErrorKind::ValueValidation, describe(path, problems))
    };
    let content = match file::read(path) {
        Ok(content) => content,
        Err(problem) => return Err(said(&mut command, &[problem])),
    };
    let merged = match command.find_subcommand(RUN) {
        Some(options) => merge::arguments(&content, options, Some(run)),
        None => Err(Vec::new()),
    };
    let merged = match merged {
        Ok(merged) => merged,
        Err(problems) => return Err(said(&mut command, &problems)),
    };
    let mut all = arguments;
    all.extend(merged.iter().map(|(_, argument)| argument.clone()));
    command.try_get_matches_from_mut(all).map_err(|error| {
        match merge::blame(&error).and_then(|key| content.entries.iter().find(|entry| entry.key == key)) {
            Some(entry) if merged.iter().any(|(key, _)| *key == entry.key) => {
                let problem = merge::problem_of(&error, entry);
                said(&mut command, &[problem])
            }
            _ => error,
        }
    })
}

/// The problems of a file, for people.
pub fn describe(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {problem}", path.display()))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
