//! What a tool takes, from what the command line takes: for a client, and back.

use anyhow::{Context, Result, bail, ensure};
use clap::{Arg, ArgAction};
use serde_json::{Value, json};

/// Bytes of a value, and values of a list.
const LONGEST: usize = 4096;
const MOST: usize = 64;

/// Whether it names a recording.
pub fn is_recording(argument: &Arg) -> bool {
    matches!(argument.get_id().as_str(), "directory" | "log" | "other")
}

/// What a client calls an argument.
pub fn name(argument: &Arg) -> &str {
    match argument.get_id().as_str() {
        "directory" | "log" => "recording",
        "files" => "path",
        id => argument.get_long().unwrap_or(id),
    }
}

/// How many values stand behind a flag.
fn values(argument: &Arg) -> usize {
    argument.get_num_args().map_or(1, |range| range.max_values())
}

fn is_list(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Append)
}

/// What an argument may be, for a client.
pub fn property(argument: &Arg) -> Value {
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return json!({"type": "boolean", "description": help(argument)});
    }
    let mut value = json!({"type": ["string", "integer", "number"]});
    let possible: Vec<_> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    if !possible.is_empty() {
        value = json!({"type": "string", "enum": possible});
    }
    if values(argument) > 1 {
        value = json!({"type": "array", "items": value, "minItems": values(argument), "maxItems": values(argument)});
    }
    if is_list(argument) {
        value = json!({"type": "array", "items": value, "maxItems": MOST});
    }
    value["description"] = help(argument).into();
    value
}

fn help(argument: &Arg) -> String {
    if is_recording(argument) {
        return "A recording's directory, as `recordings` lists it; of a ring one of its parts, or the ring where a position is given".into();
    }
    argument.get_help().map(ToString::to_string).unwrap_or_default()
}

/// The words of a flag with this value.
pub fn flag(argument: &Arg, name: &str, value: &Value) -> Result<Vec<String>> {
    let long = argument.get_long().unwrap_or(name);
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        let given = value.as_bool().context("is true or false")?;
        return Ok(if given { vec![format!("--{long}")] } else { Vec::new() });
    }
    let one = std::slice::from_ref(value);
    let items = match value {
        Value::Array(items) if is_list(argument) => items,
        _ => one,
    };
    ensure!(items.len() <= MOST, "has at most {MOST} values");
    let mut words = Vec::new();
    for item in items {
        if values(argument) > 1 {
            let parts = item.as_array().filter(|parts| parts.len() == values(argument));
            let parts = parts.with_context(|| format!("is a list of {} each", values(argument)))?;
            words.push(format!("--{long}"));
            words.extend(parts.iter().map(text).collect::<Result<Vec<_>>>()?);
        } else {
            words.push(format!("--{long}={}", text(item)?));
        }
    }
    Ok(words)
}

/// A value as a command line has it.
pub fn text(value: &Value) -> Result<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => bail!("is a text or a number"),
    };
    ensure!(text.len() <= LONGEST, "has more than {LONGEST} bytes");
    ensure!(!text.contains('\0'), "has a zero byte");
    Ok(text)
}
