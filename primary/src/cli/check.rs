//! `lockstep-primary check-config`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lockstep_node::cli::config::{self, Problem};
use lockstep_node::out::one_line;
use lockstep_node::say;

use super::preflight::{self, Finding, Outcome};

/// What to check.
#[derive(Args)]
pub struct CheckOptions {
    /// The machine's configuration file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Look at the file only, not at this host.
    #[arg(long)]
    syntax: bool,
    /// Ask nothing of other hosts: neither the arbiter nor the peer.
    #[arg(long, conflicts_with = "syntax")]
    offline: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Checks the file, then the host. Exit status 1 where a node would not run.
pub fn run(options: &CheckOptions) -> Result<ExitCode> {
    let (problems, node) = match config::file::read(&options.file) {
        Ok(content) => {
            let checked = config::check(&content);
            (checked.problems, checked.node)
        }
        Err(problem) => (vec![problem], None),
    };
    let findings = match &node {
        Some(node) if !options.syntax => preflight::run(&options.file, node, options.offline),
        _ => Vec::new(),
    };
    if options.json {
        print_json(options, &problems, &findings);
    } else {
        print(options, &problems, &findings);
    }
    let failed = !problems.is_empty() || findings.iter().any(|finding| finding.outcome == Outcome::Fail);
    Ok(ExitCode::from(u8::from(failed)))
}

fn print(options: &CheckOptions, problems: &[Problem], findings: &[Finding]) {
    if problems.is_empty() {
        say!("{}: no problem in the file", options.file.display());
    } else {
        say!("{}", config::describe(&options.file, problems));
    }
    for finding in findings {
        let word = match finding.outcome {
            Outcome::Pass => "pass",
            Outcome::Warn => "WARN",
            Outcome::Fail => "FAIL",
        };
        say!("{word}  {:<12} {}", finding.check, one_line(&finding.found));
        if let Some(remedy) = &finding.remedy {
            say!("      {:<12} remedy: {remedy}", "");
        }
    }
}

fn print_json(options: &CheckOptions, problems: &[Problem], findings: &[Finding]) {
    let problems: Vec<_> = problems
        .iter()
        .map(|problem| {
            serde_json::json!({
                "line": problem.line,
                "key": problem.key,
                "what": problem.what,
                "remedy": problem.remedy,
            })
        })
        .collect();
    say!(
        "{}",
        serde_json::json!({"file": options.file, "problems": problems, "findings": findings})
    );
}
