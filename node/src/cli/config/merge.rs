//! A file's keys as arguments of `run`.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::file::{Content, Entry, Value};
use super::{CONFIG, Problem, with_environment};
use crate::cli::node::NodeArgs;

/// Keys that cannot be set in a file: it would name another one, or end the program.
const NOT_HERE: [&str; 3] = [CONFIG, "help", "version"];
/// Keys of `lockstep-primary run` that a node does not have.
pub const OF_PRIMARY: [&str; 1] = ["save"];
/// How alike a key and a word must be for the key to have been meant (Jaro-Winkler).
const ALIKE: f64 = 0.8;

/// Arguments for the keys that neither flags nor environment set, each with its key.
pub(super) fn arguments(
    content: &Content,
    options: &Command,
    given: Option<&ArgMatches>,
) -> Result<Vec<(String, OsString)>, Vec<Problem>> {
    let mut content = content.clone();
    let mut arguments = Vec::new();
    let of_node = NodeArgs::augment_args(Command::new(""));
    for entry in content.entries.clone() {
        let long = |arg: &&Arg| arg.get_long() == Some(&entry.key) && !NOT_HERE.contains(&entry.key.as_str());
        let Some(arg) = options.get_arguments().find(long) else {
            // In a file for both programs, what a node has more than this one.
            if !longs(&of_node).contains(&entry.key) {
                unknown(&mut content, &entry, [options, &of_node]);
            }
            continue;
        };
        let source = given.and_then(|given| given.value_source(arg.get_id().as_str()));
        let overridden = matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        match typed(&entry, arg) {
            Ok(_) if overridden => {}
            Ok(typed) => arguments.extend(typed.into_iter().map(|argument| (entry.key.clone(), argument))),
            Err(wanted) => {
                let remedy = remedy(arg);
                content.problem(entry.line, &entry.key, &format!("it is {wanted}"), &remedy);
            }
        }
    }
    if content.problems.is_empty() {
        Ok(arguments)
    } else {
        content.problems.sort_by_key(|problem| problem.line);
        Err(content.problems)
    }
}

/// A key as it would be typed, or what it has to be.
fn typed(entry: &Entry, arg: &Arg) -> Result<Vec<OsString>, &'static str> {
    let key = &entry.key;
    let with = |text: &String| format!("--{key}={text}").into();
    match (&entry.value, arg.get_action()) {
        (Value::Switch(true), ArgAction::SetTrue) => Ok(vec![format!("--{key}").into()]),
        (Value::Switch(false), ArgAction::SetTrue) => Ok(Vec::new()),
        (_, ArgAction::SetTrue) => Err("true or false"),
        (Value::Switch(_), _) => Err("a text or a number, not true or false"),
        (Value::One(text), _) => Ok(vec![with(text)]),
        (Value::Many(texts), ArgAction::Append) => Ok(texts.iter().map(with).collect()),
        (Value::Many(_), _) => Err("one value, not a list"),
    }
}

/// What the flag's help says.
fn remedy(arg: &Arg) -> String {
    let names: Vec<String> = arg
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.trim_end_matches('.');
    if names.is_empty() {
        format!("true or false: {help}")
    } else {
        format!("{}: {help}", names.join(" "))
    }
}

/// The keys of these options.
fn longs(options: &Command) -> Vec<String> {
    let longs = options.get_arguments().filter_map(Arg::get_long);
    longs
        .filter(|long| !NOT_HERE.contains(long))
        .map(str::to_owned)
        .collect()
}

/// The key that is most like this one, if any is.
fn alike(key: &str, options: &Command) -> Option<String> {
    let likeness = longs(options)
        .into_iter()
        .map(|other| (strsim::jaro_winkler(&other, key), other));
    let near = likeness.filter(|(likeness, _)| *likeness > ALIKE);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

fn unknown(content: &mut Content, entry: &Entry, either: [&Command; 2]) {
    let remedy = if OF_PRIMARY.contains(&entry.key.as_str()) {
        format!(
            "take it out: a node has none, only `lockstep-primary run` has --{}",
            entry.key
        )
    } else if let Some(key) = either.iter().find_map(|options| alike(&entry.key, options)) {
        format!("`{key}` may be meant")
    } else {
        "take it out; the keys are the long flags of `lockstep-backup run --help`".into()
    };
    content.problem(entry.line, &entry.key, "there is no such key", &remedy);
}

/// The key that clap complains about.
pub(super) fn blame(error: &clap::Error) -> Option<String> {
    blamed(error).first().map(|text| name(text))
}

/// The arguments that clap complains about, in its own notation.
fn blamed(error: &clap::Error) -> &[String] {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => std::slice::from_ref(text),
        Some(ContextValue::Strings(texts)) => texts,
        _ => &[],
    }
}

/// The key in clap's notation of an argument.
fn name(text: &str) -> String {
    let word = text.trim_start_matches(['-', '<']);
    let name = word.split([' ', '=', '[', '<', '>']).next();
    name.unwrap_or_default().to_owned()
}

/// What clap complains about, without its own decoration.
pub(super) fn problem_of(error: &clap::Error, entry: &Entry) -> Problem {
    Problem {
        line: entry.line,
        key: Some(entry.key.clone()),
        what: complaint(error),
        remedy: options()
            .get_arguments()
            .find(|arg| arg.get_long() == Some(&entry.key))
            .map(remedy)
            .unwrap_or_default(),
    }
}

fn complaint(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

/// What a node of a pair must have. Of a node itself clap asks it only where any of it is given.
const OF_PAIR: [&str; 6] = ["name", "node", "peer_name", "peer", "pki", "arbiter"];

/// The options that a file is checked against: those of a node, which both programs' machines are started with.
pub(super) fn options() -> Command {
    let options = NodeArgs::augment_args(Command::new(super::RUN)).no_binary_name(true);
    OF_PAIR
        .iter()
        .fold(options, |options, id| options.mut_arg(id, |arg| arg.required(true)))
}

/// A file that was checked.
pub struct Checked {
    /// What is wrong with it; nothing can be started then.
    pub problems: Vec<Problem>,
    /// What a node would be run with.
    pub node: Option<NodeArgs>,
}

/// Checks all keys of a file: every problem is told, not the first only.
pub fn check(content: &Content) -> Checked {
    let root = with_environment(Command::new("lockstep").subcommand(options()));
    let Some(options) = root.find_subcommand(super::RUN).cloned() else {
        return Checked {
            problems: Vec::new(),
            node: None,
        };
    };
    let mut content = content.clone();
    let mut problems = content.problems.clone();
    content.problems.clear();
    // Keys that are wrong by themselves go first, so that the rest can be looked at.
    if let Err(found) = arguments(&content, &options, None) {
        content
            .entries
            .retain(|entry| !found.iter().any(|problem| problem.key.as_ref() == Some(&entry.key)));
        problems.extend(found);
    }
    let node = loop {
        let Ok(arguments) = arguments(&content, &options, None) else {
            break None;
        };
        let matches = options
            .clone()
            .try_get_matches_from(arguments.into_iter().map(|(_, argument)| argument));
        let error = match matches.and_then(|matches| NodeArgs::from_arg_matches(&matches)) {
            Ok(node) => break Some(node),
            Err(error) => error,
        };
        let entry = blame(&error).and_then(|key| content.entries.iter().find(|entry| entry.key == key).cloned());
        match entry {
            _ if error.kind() == ErrorKind::MissingRequiredArgument => {
                let found = missing(&error, &options, &problems);
                problems.extend(found);
                break None;
            }
            Some(entry) => {
                problems.push(problem_of(&error, &entry));
                content.entries.retain(|other| other.key != entry.key);
            }
            // The environment has it.
            None => {
                problems.push(Problem {
                    line: 0,
                    key: blame(&error),
                    what: complaint(&error),
                    remedy: "set it in the file, and not in the environment".into(),
                });
                break None;
            }
        }
    };
    problems.sort_by_key(|problem| problem.line);
    let node = node.filter(|_| problems.is_empty());
    Checked { problems, node }
}

/// What is missing, but for what may be missing because it was wrong: that has a problem already.
fn missing(error: &clap::Error, options: &Command, problems: &[Problem]) -> Vec<Problem> {
    // Who knows what stands in lines that are not TOML.
    if problems.iter().any(|problem| problem.key.is_none()) {
        return Vec::new();
    }
    let is_told = |key: &String| {
        let mut told = problems.iter().filter_map(|problem| problem.key.as_ref());
        told.any(|told| told == key || alike(told, options).as_ref() == Some(key))
    };
    let mut found = Vec::new();
    for text in blamed(error) {
        // Of a group, one is enough.
        let keys: Vec<String> = text.split('|').map(name).collect();
        if keys.iter().any(is_told) {
            continue;
        }
        let arg = options
            .get_arguments()
            .find(|arg| arg.get_long() == keys.first().map(String::as_str));
        found.push(Problem {
            line: 0,
            key: keys.first().cloned(),
            what: match &keys[..] {
                [_] => "it is required, and not set".into(),
                several => format!("one of {} is required, and none is set", several.join(", ")),
            },
            remedy: format!("set it; {}", arg.map(remedy).unwrap_or_default()),
        });
    }
    found
}
