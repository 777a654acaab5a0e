//! `fleet`: all machines of an etcd, asked there and nowhere else, so from any host that reaches it.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::arbiter::ArbiterOptions;
use super::table::table;
use crate::fleet::{self, Entry, Row, row};
use crate::out::{Out, printable};
use crate::tell;

/// From one look to the next where it is watched.
const WATCH: Duration = Duration::from_secs(2);

/// Which machines, and how to tell.
#[derive(Args)]
pub struct FleetOptions {
    /// These machines, and no others.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    arbiter: ArbiterOptions,
    /// A machine's configuration file, which names the arbiter and who asks it.
    #[arg(long, value_name = "FILE", required_unless_present = "arbiter", conflicts_with_all = [
        "arbiter", "arbiter_ca", "arbiter_cert", "arbiter_key", "arbiter_user", "arbiter_password_file"
    ])]
    config: Option<PathBuf>,
    /// Tell again every two seconds, until interrupted.
    #[arg(long, conflicts_with = "check")]
    watch: bool,
    /// Exit with 1 unless every machine shown is protected.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Tells how they are.
pub fn run(options: &FleetOptions) -> Result<ExitCode> {
    let arbiter = match &options.config {
        Some(path) => ArbiterOptions::of_file(path)?,
        None => options.arbiter.clone(),
    };
    let mut gateway = arbiter.gateway("all machines")?;
    loop {
        let read = fleet::read(&mut gateway);
        if options.watch && !options.json && std::io::stdout().is_terminal() {
            // To the top left, and clear what is below.
            Out.write_all(b"\x1b[H\x1b[J")?;
        }
        let shown = read
            .map_err(Into::into)
            .and_then(|machines| Ok((rows(&machines, &options.names)?, damage(&machines))));
        let (rows, damage) = match shown {
            Ok(shown) => shown,
            // It goes on when the arbiter answers again, or the machine is there again.
            Err(error) if options.watch => {
                tell!("{error:#}");
                std::thread::sleep(WATCH);
                continue;
            }
            Err(error) => return Err(error),
        };
        Out.write_all(printable(&text(&rows, options.json)?).as_bytes())?;
        Out.flush()?;
        for (machine, what) in damage {
            tell!("machine {machine}: {what}");
        }
        if rows.is_empty() {
            tell!("no machine has a record at {}", gateway.describe());
        }
        if options.watch {
            std::thread::sleep(WATCH);
            continue;
        }
        let is_well = !rows.is_empty() && rows.iter().all(Row::is_protected);
        return Ok(ExitCode::from(u8::from(options.check && !is_well)));
    }
}

/// The machines that are asked for; each has to be there.
fn rows(machines: &BTreeMap<String, Entry>, names: &[String]) -> Result<Vec<Row>> {
    if names.is_empty() {
        return Ok(machines.iter().map(|(name, entry)| row(name, entry)).collect());
    }
    let mut rows = Vec::new();
    for name in names {
        let Some(entry) = machines.get(name) else {
            let there: Vec<_> = machines.keys().map(String::as_str).collect();
            bail!("the arbiter has no machine `{name}`; it has: {}", there.join(", "));
        };
        rows.push(row(name, entry));
    }
    Ok(rows)
}

/// What cannot be read, by machine.
fn damage(machines: &BTreeMap<String, Entry>) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (machine, entry) in machines {
        if let Some(Err(why)) = &entry.record {
            found.push((machine.clone(), format!("its record is damaged: {why}")));
        }
        for (node, told) in &entry.told {
            if let Err(why) = told {
                found.push((
                    machine.clone(),
                    format!("what node `{node}` tells cannot be read: {why}"),
                ));
            }
        }
    }
    found
}

fn text(rows: &[Row], json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string(rows)? + "\n");
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    let head = [
        "MACHINE", "STATE", "RUNS ON", "BACKUP", "TERM", "LAG", "SINCE", "VERSION",
    ];
    let cells = rows.iter().map(cells);
    Ok(table([head.map(str::to_owned)].into_iter().chain(cells).collect()))
}

fn cells(row: &Row) -> [String; 8] {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let backup = match (&row.backup, &row.backup_state) {
        // As it should be: both say the same of the machine.
        (Some(node), Some(state)) if *state == row.state => node.clone(),
        (Some(node), Some(state)) => format!("{node} ({state})"),
        _ => "-".into(),
    };
    [
        row.machine.clone(),
        row.words(),
        or_dash(&row.runs_on),
        backup,
        row.term.to_string(),
        row.lag_at_most_ms
            .map_or_else(|| "-".into(), |lag| format!("<= {lag} ms")),
        or_dash(&row.since),
        or_dash(&row.version),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_shown_by_name_and_one_that_is_not_there_is_an_error() {
        let machines: BTreeMap<String, Entry> = ["b", "a"].map(|name| (name.to_owned(), Entry::default())).into();
        let all = rows(&machines, &[]).unwrap();
        let shown = text(&all, false).unwrap();
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("MACHINE ") && lines[1].starts_with("a ") && lines[2].starts_with("b "));
        assert!(lines[1].contains("unknown (no-record)"), "{shown}");
        assert_eq!(rows(&machines, &["b".into()]).unwrap()[0].machine, "b");
        let error = rows(&machines, &["c".into()]).unwrap_err().to_string();
        assert!(error.contains("`c`") && error.ends_with("a, b"), "{error}");
        let json: serde_json::Value = serde_json::from_str(&text(&all, true).unwrap()).unwrap();
        assert_eq!(
            (&json[0]["state"], &json[0]["runs_on"]),
            (&"unknown".into(), &serde_json::Value::Null)
        );
    }
}
